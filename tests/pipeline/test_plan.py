"""Discovery, shards, the check of stages, and what a resume compares."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from PIL import Image

from dhr_batch.pipeline import config, plan
from dhr_batch.pipeline.commit import Refused
from dhr_batch.pipeline.config import ConfigError
from dhr_batch.pipeline.prepare import Request, check_gpus, describe, prepare
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
    assert made.to_json()["shards"] == ids
    assert made.images == 3


def test_limit_takes_the_first_images(photographs: Path) -> None:
    made = prepare(request(photographs, limit=1))
    assert [item.image_id for shard in made.shards for item in shard.items] == ["a.jpg"]


def test_a_renamed_folder_and_other_run_settings_change_nothing(photographs: Path) -> None:
    before = prepare(request(photographs)).to_json()
    moved = photographs.rename(photographs.with_name("elsewhere"))
    after = prepare(request(moved, "workers=7", "max_quarantined=0.5"))
    assert plan.changes(before, after) == []


def test_changed_settings_and_images_are_named(photographs: Path) -> None:
    before = prepare(request(photographs)).to_json()
    (photographs / "a.jpg").unlink()
    lines = plan.changes(before, prepare(request(photographs, "embed.steps=3", seed=5)))
    assert "embed.steps: 2 -> 3" in lines
    assert "seed: 0 -> 5" in lines
    assert "images: 0 added, 1 gone" in lines


def test_changed_weights_are_named(photographs: Path) -> None:
    made = prepare(request(photographs))
    stored = made.to_json()
    name = next(iter(stored["fingerprint"]["models"]))
    stored["fingerprint"]["models"] |= {name: "0" * 16, "a-model-of-before": "1" * 16}
    lines = plan.changes(stored, made)
    assert len(lines) == 1
    assert lines[0].startswith(f"models.{name}: {'0' * 16} -> ")


class NeedsMask:
    needs: ClassVar = frozenset({"mask"})
    gives: ClassVar = frozenset({"latent", "inverted"})

    class Options(config.BaseModel):
        name: str


def test_a_chain_that_lacks_a_field_is_refused(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.lookup

    def lookup(family: str, name: str) -> object:
        return NeedsMask if family == "embed" else real(family, name)

    monkeypatch.setattr(registry, "lookup", lookup)
    with pytest.raises(ConfigError, match=r"embed.name=w needs mask, which no earlier stage gives"):
        prepare(request(photographs, "embed={name: w}"))


def test_absent_gpus_are_refused_with_the_way_out(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhr_batch.pipeline.devices.physical_gpus", lambda: 0)
    asked = request(photographs, gpus=8)
    with pytest.raises(Refused, match=r"--gpus 8 asks for 8 GPUs.* has 0 .*--gpus 0 .*--address"):
        check_gpus(prepare(asked), asked)


def test_description_for_people(photographs: Path) -> None:
    text = describe(prepare(request(photographs)), Path("out"))
    assert "3 images, 3 shards" in text
    assert "random weights" in text
