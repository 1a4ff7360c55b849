"""Shards, the file of a plan, its fingerprint, and the check of stages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models.weights import weights_of_generator
from dhr_batch.pipeline.planning import config
from dhr_batch.pipeline.planning.plan import fingerprint, share_w
from dhr_batch.pipeline.planning.prepare import check_gpus, describe, prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.records import plan_file
from dhr_batch.stages import registry


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name in ("b/2.png", "a.jpg", "c.webp"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def request(folder: Path, *sets: str, **settings: object) -> Request:
    return Request(
        settings={"dataset": str(folder), "preset": "tiny", "gpus": 0, **settings}, sets=sets
    )


def test_images_are_cut_into_shards_in_order(photographs: Path) -> None:
    made = prepare(request(photographs, "shard_size=2"))
    ids = [[item.image_id for item in shard.items] for shard in made.shards]
    assert ids == [["a.jpg", "b/2.png"], ["c.webp"]]
    assert made.stored().shards == ids
    assert made.images == 3


def test_limit_takes_the_first_images(photographs: Path) -> None:
    made = prepare(request(photographs, limit=1))
    assert [item.image_id for shard in made.shards for item in shard.items] == ["a.jpg"]


def test_the_file_of_a_plan_reads_back_and_has_a_line_per_shard(photographs: Path) -> None:
    plan = prepare(request(photographs, "shard_size=2")).stored()
    text = plan_file.dumps(plan)
    content = json.loads(text)
    assert len(content.pop("sha256")) == 64
    assert content == plan.to_json()
    assert b'\n  ["a.jpg", "b/2.png"],\n  ["c.webp"]\n' in text
    assert json.loads(plan_file.dumps(replace(plan, shards=[], contents=[])))["shards"] == []


def test_directions_are_part_of_the_fingerprint(photographs: Path) -> None:
    def digests(scale: float) -> dict[str, str]:
        np.save(photographs / "age.npy", np.full(512, scale, np.float32))
        edits = f"edit.edits=[{{direction: {photographs / 'age.npy'}}}, {{direction: smile}}]"
        return fingerprint(prepare(request(photographs, edits))).directions

    first, same, other = digests(1), digests(1), digests(2)
    assert first == same
    assert first["smile"] == other["smile"]
    assert first[str(photographs / "age.npy")] != other[str(photographs / "age.npy")]


def test_a_direction_that_does_not_exist_is_refused_before_anything_starts(
    photographs: Path,
) -> None:
    with pytest.raises(Refused, match=r"edit\.edits: .*smlie.*did you mean 'smile'"):
        prepare(request(photographs, "edit.edits=[{direction: smlie}]"))


class NeedsMask:
    needs: ClassVar = frozenset({"mask"})
    gives: ClassVar = frozenset({"latent", "inverted"})

    class Options(config.BaseModel):
        name: str


@pytest.mark.parametrize(
    ("made_on", "weights", "warned"),
    [
        ("cats", {"cats": "0123"}, True),
        ("cats", None, True),
        ("tiny", {}, False),
        (None, None, False),
    ],
)
def test_a_direction_made_on_another_generator_is_named(
    made_on: str | None,
    weights: object,
    warned: bool,
    photographs: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    np.savez(tmp_path / "mine.npz", smile=np.ones(512, np.float32))
    about = {"generator": made_on, "generator_weights": weights} if made_on else 1000
    described = {"samples": about, "directions": {"smile": {"unit": "1"}}}
    (tmp_path / "mine.yaml").write_text(json.dumps(described))
    edit = {"edits": [{"direction": f"{tmp_path}/mine.npz#smile"}]}
    prepare(request(photographs, edit=edit))
    assert ("mine.npz#smile was made on the generator cats" in caplog.text) == warned


def test_generators_share_the_w_space_of_the_one_whose_weights_they_have(tmp_path: Path) -> None:
    own = weights_of_generator("mobilestylegan-256")
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(b"weights")
    found = {
        name: share_w(generator, name, weights)
        for name, generator, weights in [
            ("mobilestylegan-256", "mobilestylegan-1024", own),
            ("old", "mobilestylegan-1024", own),
            ("stylegan2-ffhq-1024", "mobilestylegan-256", {"stylegan2-ffhq-1024": "1"}),
            ("renamed", str(copy), weights_of_generator(str(copy))),
            ("copy", str(copy), {"copy": "another"}),
            ("cats", "mobilestylegan-256", {}),
        ]
    }
    assert [*found.values()] == [True, True, True, True, False, False]


def test_a_chain_that_lacks_a_field_is_refused(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.lookup

    def lookup(family: str, name: str) -> object:
        return NeedsMask if family == "embed" else real(family, name)

    monkeypatch.setattr(registry, "lookup", lookup)
    with pytest.raises(Refused, match=r"embed.name=w: it needs mask, which no earlier stage gives"):
        prepare(request(photographs, "embed={name: w}"))


def test_absent_gpus_are_refused_with_the_way_out(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhr_batch.pipeline.planning.devices.physical_gpus", lambda: 0)
    asked = request(photographs, gpus=8)
    with pytest.raises(
        Refused, match=r"--gpus 8: it asks for 8 GPUs.* has 0 .*--gpus 0 .*--address"
    ):
        check_gpus(prepare(asked), asked)


def test_description_for_people(photographs: Path) -> None:
    text = describe(prepare(request(photographs)), Path("out"))
    assert "3 images, 3 shards" in text
    assert "random weights" in text
