"""The default rule of edits: rows of the trunk, and a mask and a feature that follow the motion."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_batch.stages import motion
from dhr_batch.stages.context import Context
from dhr_batch.stages.edit.direction_files import DirectionError
from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.edit.rerender import Rerender
from dhr_batch.stages.networks.faces.dlib_face import FrontalFaces
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.tiny import fill
from dhr_batch.stages.record import CONTOURS, Record


def drawn(net: Generator) -> Generator:
    fill(net)
    return net.eval()


GENERATORS = {
    "mobile": lambda: MobileStyleGAN((8,) * 6, "haar", 3, 23),
    "mobile-rgb": lambda: MobileStyleGAN((8,) * 4, "rgb", 1, 12),
    "stylegan2": lambda: StyleGAN2((8,) * 5, mapping_layers=1),
    "stylegan2-even": lambda: StyleGAN2((8,) * 4, feature_layer=4, mapping_layers=1),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_rows_of_the_trunk_are_those_that_change_it(name: str) -> None:
    net = drawn(GENERATORS[name]())
    ws = net.broadcast(net.w_mean[None]).clone()
    before = net.trunk(ws)
    for row in range(net.num_ws):
        moved = ws.clone()
        moved[:, row] += 1
        parts = zip(net.trunk(moved), before, strict=True)
        changed = any(a is not None and not torch.equal(a, b) for a, b in parts)
        assert changed == (row in net.trunk_rows), row
    assert set(net.trunk_rows) < set(net.live_rows)


def context_of(net: Generator | None = None) -> Context:
    context = Context("cpu", "tiny" if net is None else "mine", models=lambda name: None)  # type: ignore[arg-type,return-value]
    if net is not None:
        context._networks["generator", "mine"] = net
    context.refine = {"name": "dhr", "perceptual": "none"}
    return context


def record(context: Context, labels: bool = True) -> Record:
    """A refined image: the left half is in-domain, the middle half shows a person."""
    net: Generator = context.network("generator", context.generator)
    draw = torch.Generator().manual_seed(1)
    ws = net.broadcast(net.map(torch.randn(1, 512, generator=draw)))
    feature = net.to_feature(ws) + torch.randn(net.to_feature(ws).shape, generator=draw)
    side = net.resolution
    mask, person = np.zeros((2, side, side), bool)
    mask[:, : side // 2] = True
    person[:, side // 4 : -side // 4] = True
    found = Record(
        "a",
        "a",
        latent=ws[0].numpy().copy(),
        mask=mask,
        labels=person.astype(np.uint8) if labels else None,
        delta={},
        feature=feature[0].numpy(),
    )
    done = Rerender(context)(found)
    return replace(done, image=done.refined, edits=())


def edited(context: Context, before: Record, push: str, **options: Any) -> Record:
    edits = [{"direction": push, "strengths": options.pop("strengths", [2.0])}]
    stage = Directions(Directions.Options.model_validate({"edits": edits} | options))
    stage.setup(context)
    done = stage.run([before])[0]
    assert done.failure is None, done.failure
    return done


@pytest.fixture
def push(tmp_path) -> str:  # type: ignore[no-untyped-def]
    np.save(tmp_path / "push.npy", np.random.default_rng(5).normal(size=512).astype(np.float32))
    return str(tmp_path / "push.npy")


def flow_of(x: float):  # type: ignore[no-untyped-def]
    def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.float32([x, 0]), (*before.shape[:2], 2)).copy()

    return flow


NETS = [None, "stylegan2"]


@pytest.mark.parametrize("name", NETS)
def test_only_rows_of_the_trunk_move(name: str | None, push: str) -> None:
    context = context_of(name and drawn(GENERATORS[name]()))
    net, before = context.network("generator", context.generator), record(context)
    code = edited(context, before, push).edits[0].latent
    moved = (np.abs(code - before.latent).max(1) > 0).nonzero()[0].tolist()
    assert moved == net.trunk_rows
    code = edited(context, before, push, rows="all").edits[0].latent
    assert (np.abs(code - before.latent).max(1) > 0).all()


def test_the_out_of_domain_part_keeps_its_colours_with_rows_of_the_trunk(push: str) -> None:
    """Where neither mask nor motion reach, the picture is the refined one."""
    context = context_of()
    before = replace(record(context), mask=np.zeros((32, 32), bool))
    before = replace(before, refined=Rerender(context)(before).refined)
    still = edited(context, before, push, follow="none")
    np.testing.assert_array_equal(still.edits[0].image, before.refined)
    recoloured = edited(context, before, push, rows="all", follow="none").edits[0].image
    assert np.abs(recoloured.astype(int) - before.refined).mean() > 1


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("follow", ["layers", "warp"])
def test_without_motion_the_result_is_the_fixed_rule_bit_for_bit(
    name: str | None, follow: str, push: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(name and drawn(GENERATORS[name]()))
    before = record(context)
    fixed = edited(context, before, push, follow="none").edits[0].image
    monkeypatch.setattr(motion, "optical_flow", flow_of(0.49))
    still = edited(context, before, push, follow=follow).edits[0].image
    np.testing.assert_array_equal(still, fixed)
    monkeypatch.setattr(motion, "optical_flow", flow_of(40.0))
    moved = edited(context, before, push, follow=follow).edits[0].image
    assert np.abs(moved.astype(int) - fixed).mean() > 1


def test_an_edit_takes_half_a_forward_pass_more(push: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each image one pass, for the plain render of its own code."""
    counts: Counter[str] = Counter()
    for half in ("trunk", "from_feature"):
        real = getattr(MobileStyleGAN, half)

        def counted(  # type: ignore[no-untyped-def]
            self, x: Tensor, *rest, _half=half, _real=real, **named
        ):
            counts[_half] += len(x)
            return _real(self, x, *rest, **named)

        monkeypatch.setattr(MobileStyleGAN, half, counted)
    context = context_of()
    before, strengths = record(context), [-2.0, -1.0, 0.0, 1.0, 2.0]
    moved = len(strengths) - 1  # strength 0 is the refined picture
    for follow, trunks, halves in (("none", moved, moved), ("layers", moved + 1, 2 * moved + 1)):
        counts.clear()
        edited(context, before, push, follow=follow, strengths=strengths)
        assert (counts["trunk"], counts["from_feature"]) == (trunks, halves)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("follow", ["layers", "warp"])
def test_pictures_do_not_depend_on_batches(name: str | None, follow: str, push: str) -> None:
    context = context_of(name and drawn(GENERATORS[name]()))
    before = record(context)
    options = {"follow": follow, "strengths": [-2.0, 1.0, 2.0]}
    together = edited(context, before, push, batch=8, **options).edits
    alone = edited(context, before, push, batch=1, **options).edits
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.image.astype(int) - other.image).mean() < 0.1


def test_pictures_are_rendered_again_with_the_rule_of_the_run(push: str) -> None:
    context = context_of()
    before = record(context)
    seen = []
    for rule in ({"rows": "all", "follow": "none"}, {"rows": "trunk", "follow": "layers"}):
        context.edit = rule
        again = Rerender(context, [(push, 2.0)])(replace(before, refined=None, image=None))
        made = edited(context, before, push, **rule).edits[0]
        np.testing.assert_array_equal(again.edits[0].image, made.image)
        seen.append(made.image)
    assert not np.array_equal(*seen)


def test_without_labels_everything_is_the_person(
    push: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(motion, "optical_flow", flow_of(20.0))
    context = context_of()
    before = record(context, labels=False)
    layers, warp = (
        edited(context, before, push, follow=follow).edits[0].image for follow in ("layers", "warp")
    )
    assert np.abs(layers.astype(int) - warp).max() <= 1


def test_an_edit_that_loses_the_face_is_capped_with_a_note(
    push: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of()
    before = record(context)
    # The unedited face is seen, the first edit is not, nor is the second at 3/4 of its strength.
    answers = iter([True, True, False, False, True])
    monkeypatch.setattr(FrontalFaces, "sees", lambda self, picture: next(answers))
    done = edited(context, before, push, strengths=[1.0, 2.0])
    assert done.notes == ("edit: edit:push:2 loses the face and was made with strength 1",)
    small, capped = done.edits
    assert [e.strength for e in done.edits] == [1.0, 2.0]
    np.testing.assert_allclose(capped.latent, small.latent, atol=1e-5)
    assert np.abs(capped.image.astype(int) - small.image).max() <= 1
    # A face that the detector misses from the start cannot be lost.
    monkeypatch.setattr(FrontalFaces, "sees", lambda self, picture: False)
    assert edited(context, before, push).notes == ()


def test_a_face_that_is_lost_at_any_strength_stays_as_it_is(
    push: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of()
    before = record(context)
    answers = iter([True] + [False] * 4)
    monkeypatch.setattr(FrontalFaces, "sees", lambda self, picture: next(answers))
    done = edited(context, before, push)
    assert done.notes[0].endswith("with strength 0")
    assert np.abs(done.edits[0].image.astype(int) - before.refined).max() <= 1


def test_an_edit_has_the_metrics_of_its_contours(
    push: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(motion, "optical_flow", flow_of(30.0))
    context = context_of()
    before = record(context)
    found = edited(context, before, push).edits[0].contours
    assert found.keys() == set(CONTOURS)
    assert found["background_psnr"] == found["background_psnr_refined"]
    assert edited(context, before, push, follow="none").edits[0].contours == {}


def test_a_direction_of_rows_behind_the_feature_alone_is_refused(tmp_path, push: str) -> None:  # type: ignore[no-untyped-def]
    context = context_of()
    net = context.network("generator", "tiny")
    rows = np.ones((net.num_ws, 512), np.float32)
    rows[net.trunk_rows] = 0
    np.save(tmp_path / "late.npy", rows)
    with pytest.raises(DirectionError, match=r"late moves only rows .* edit\.rows=trunk") as error:
        edited(context, record(context), str(tmp_path / "late.npy"))
    assert error.value.way_out == "set edit.rows=all"
    done = edited(context, record(context), str(tmp_path / "late.npy"), rows="all")
    assert not np.array_equal(done.edits[0].latent, done.latent)
