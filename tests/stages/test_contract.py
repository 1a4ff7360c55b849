"""What every stage promises, checked on every registered member: a new one is picked up here."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.encoders import psp
from dhr_batch.stages.networks.generators import stylegan2_layouts
from dhr_batch.stages.record import ImageFailure, Record
from dhr_batch.tests.stages import narrow

# Settings without which a member needs a download or takes long.
SMALL: dict[str, dict] = {
    "embed": {"steps": 2, "perceptual": "tiny"},
    "segment": {"parser": "none", "perceptual": "tiny"},
    "refine": {"steps": 2, "perceptual": "tiny", "parser": "none"},
    "measure": {"perceptual": ["tiny"], "identity": "none", "landmarks": "none"},
}
# Layouts of the encoders' files; the weights are random.
ENCODERS: dict[str, dict] = {
    "e4e-ffhq": {"shared": True},
    "psp-ffhq": {"shared": False},
    "restyle-e4e-ffhq": {"shared": True, "pyramid": False, "inputs": 6},
    "restyle-psp-ffhq": {"shared": False, "pyramid": False, "inputs": 6},
}
# Members that do not work on the generator `tiny`.
ON_STYLEGAN2 = {"hyperstyle", "hfgi"}
WIDTHS = (16, 16, 16, 16, 8)
DEFAULT = {
    "align": "ffhq",
    "embed": "w+",
    "segment": "dhr",
    "refine": "dhr",
    "edit": "directions",
    "measure": "standard",
}
MEMBERS = [(stage, name) for stage in registry.STAGES for name in registry.names(stage)]


@pytest.fixture(scope="module")
def models(narrow_encoder, tmp_path_factory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")
    makers = {name: partial(narrow_encoder, **layout) for name, layout in ENCODERS.items()}
    makers |= {
        "hyperstyle-ffhq": partial(narrow.hyperstyle, WIDTHS),
        "hyperstyle-w-encoder": narrow.w_encoder,
        "style-transformer-ffhq": narrow.style_transformer,
        "hfgi-ffhq": partial(narrow.hfgi, WIDTHS[-1]),
    }

    def find(name):
        assert name in makers, f"asked for {name}"
        if not (folder / name).exists():
            torch.save(makers[name](), folder / name)
        return folder / name

    return find


def build(context: Context, stage: str, name: str, **settings: Any):
    member = registry.lookup(stage, name)
    known = {k: v for k, v in SMALL.get(stage, {}).items() if k in member.Options.model_fields}
    built = member(member.Options(**{"name": name} | known | settings))
    built.setup(context)
    return built


def photograph(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((64, 64)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def prepared(models, tmp_path_factory) -> Callable[[str], tuple[Context, dict[str, list[Record]]]]:
    """Return for a member a context and three records as they reach each stage.

    The records are made by the default members before it.
    """
    stylegan2 = tmp_path_factory.mktemp("generators") / "narrow.safetensors"
    stylegan2_layouts.save(narrow.stylegan2(WIDTHS), stylegan2, {})

    @cache
    def make(generator):
        context = Context("cpu", generator, models, aligned=True)
        records = [Record(f"{i}.png", f"{i}.png", data=photograph(i)) for i in range(3)]
        reached = {}
        for stage in registry.STAGES:
            reached[stage] = records
            records = build(context, stage, DEFAULT[stage]).run(records)
            assert [r.failure for r in records] == [None] * 3
        return context, reached

    return lambda member: make(str(stylegan2) if member in ON_STYLEGAN2 else "tiny")


def locked(record: Record) -> Record:
    for field in fields(record):
        value = getattr(record, field.name)
        arrays = value.values() if isinstance(value, dict) else [value]
        for array in arrays:
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    return record


@pytest.mark.parametrize(("stage", "name"), MEMBERS)
def test_members_keep_the_contract(prepared, stage, name):
    context, before = prepared(name)
    told: list[tuple[str, int, int]] = []
    hearing = replace(context, progress=lambda *step: told.append(step))
    member = build(hearing, stage, name)
    assert member.family == stage
    records = [locked(r) for r in before[stage]]
    lost = replace(records[1], failure=ImageFailure("align", "no_face", "none"))
    batch = [records[2], lost, records[0]]
    done = member.run(batch)
    assert [r.image_id for r in done] == ["2.png", "1.png", "0.png"]
    assert done[1] is lost
    for record in (done[0], done[2]):
        assert record.failure is None, record.failure
        # A member of `refine` may leave the feature as it is, and say so with None.
        for field in member.gives - {"feature"}:
            assert getattr(record, field) is not None, field
    # Every step is told in order. `pti` may need fewer than all.
    assert told == [(stage, n, told[0][2]) for n in range(1, len(told) + 1)]
    assert told or not {"steps", "passes"} & set(member.Options.model_fields)
    assert not told or len(told) == told[0][2] or name == "pti"
    assert member.run([]) == []


@pytest.mark.parametrize(("stage", "name"), MEMBERS)
def test_members_do_not_depend_on_batch_mates(prepared, stage, name):
    context, before = prepared(name)
    member = build(context, stage, name)
    together = member.run(before[stage])
    alone = [member.run([record])[0] for record in before[stage]]
    for a, b in zip(together, alone, strict=True):
        for field in member.gives:
            x, y = getattr(a, field), getattr(b, field)
            if isinstance(x, np.ndarray) and x.dtype == np.uint8:
                assert np.abs(x.astype(int) - y).max() <= 2, field
            elif isinstance(x, np.ndarray) and field == "feature":
                # The first steps of Adam move a value by its whole rate even if its gradient is
                # nearly 0. Where it is, the last bits of the processor decide in which direction.
                assert np.mean(np.abs(x - y) > 2e-2) < 0.01
                assert np.linalg.norm(x - y) <= 0.02 * np.linalg.norm(y)
            elif isinstance(x, np.ndarray):
                np.testing.assert_allclose(x, y, atol=2e-2)


@pytest.mark.parametrize(("stage", "name"), [m for m in MEMBERS if m[0] in ("embed", "refine")])
def test_members_give_usable_results_in_bfloat16(prepared, monkeypatch, stage, name):
    if name == "style-transformer":
        # Its only width takes minutes at 256 px on processors without instructions for bfloat16.
        monkeypatch.setattr(psp, "SIZE", 64)
    context, before = prepared(name)
    exact, (record,) = build(context, stage, name).run(before[stage][:1])[0], before[stage][:1]
    (rough,) = build(replace(context, precision="bf16"), stage, name).run([record])
    assert rough.failure is None, rough.failure
    same = [True]
    for field in ["latent"] if stage == "embed" else ["delta", "feature", "state"]:
        for key, value in named(exact, field).items():
            other = named(rough, field)[key]
            assert (other.dtype, other.shape) == (value.dtype, value.shape)
            assert np.isfinite(other).all()
            same.append(np.array_equal(other, value))
    # `weights` changes none of a generator as small as this.
    assert all(same) == (name in ("none", "weights"))
    picture = "inverted" if stage == "embed" else "refined"
    apart = getattr(rough, picture).astype(int) - getattr(exact, picture)
    assert np.abs(apart).mean() < 24


def named(record: Record, field: str) -> dict[str, np.ndarray]:
    value = getattr(record, field)
    return {"": value} if isinstance(value, np.ndarray) else dict(value or {})


def test_needs_are_given_by_earlier_stages():
    given = {"data"}
    for stage in registry.STAGES:
        for name in registry.names(stage):
            member = registry.lookup(stage, name)
            assert member.needs <= given, (stage, name)
        given |= set.union(*(set(registry.lookup(stage, n).gives) for n in registry.names(stage)))


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(registry.UnknownName, match=r"did you mean 'dhr'.*none"):
        registry.lookup("refine", "drh")


def test_members_of_other_packages_are_named_by_module_and_class():
    member = registry.lookup("refine", "dhr_batch.stages.refine.base:NoRefinement")
    assert member is registry.lookup("refine", "none")
    with pytest.raises(registry.UnknownName, match=r"no_such_package.*cannot be imported"):
        registry.lookup("refine", "no_such_package:Refiner")
