"""Rows do not depend on how many workers there are or how many images are computed together."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from dhr_batch.pipeline.sources import Item
from dhr_batch.tests.faults import harness

TINY = {
    "generator": "tiny",
    "align": {"name": "ffhq"},
    "embed": {"name": "w+", "steps": 2, "perceptual": "tiny"},
    "segment": {"name": "dhr", "parser": "none", "perceptual": "tiny"},
    "refine": {"name": "dhr", "steps": 2, "perceptual": "tiny"},
    "edit": {"name": "directions", "edits": []},
    "measure": {
        "name": "standard",
        "perceptual": ["tiny"],
        "identity": "none",
        "landmarks": "none",
    },
}


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with harness.session(cpus=8):
        yield


def run(items: list[Item], out: Path, workers: int, batch: int, **settings: Any) -> Path:
    chosen = {"workers": workers, "batch_size": batch, "shard_size": 4, **settings}
    outcome = harness.run(harness.make(items, aligned=True, **chosen), out)
    assert (outcome.quarantined, outcome.exit_code) == (0, 0)
    return out


def equal_bytes(folder: Path, workers: list[int], batches: list[int]) -> None:
    items = harness.photographs(folder / "in", [f"good-{i}.png" for i in range(22)])
    outs = {
        key: run(items, folder / "{}-{}".format(*key), *key)
        for key in itertools.product(workers, batches)
    }
    for batch in batches:
        first, *others = (harness.published(outs[count, batch]) for count in workers)
        assert all(other == first for other in others)
    for name in ("images", "latents", "metrics"):
        first, *others = (harness.table(outs[workers[0], b], name).astype(str) for b in batches)
        assert all(other.equals(first) for other in others)


def test_rows_of_cheap_stages_are_identical(tmp_path: Path) -> None:
    equal_bytes(tmp_path, [1, 2], [1, 4])


@pytest.mark.slow
def test_rows_of_cheap_stages_are_identical_for_eight_workers(tmp_path: Path) -> None:
    equal_bytes(tmp_path, [1, 8], [1, 4])


def crops(folder: Path) -> list[Item]:
    """Eight squares of one photograph."""
    folder.mkdir()
    photo, items = data.astronaut(), []
    for i, (y, x) in enumerate(itertools.product((0, 90, 180, 270), (60, 200))):
        stream = io.BytesIO()
        Image.fromarray(photo[y : y + 200, x : x + 200]).resize((32, 32)).save(stream, "PNG")
        (folder / f"{i}.png").write_bytes(stream.getvalue())
        items.append(harness.item(folder, f"{i}.png"))
    return items


def psnr(out: Path) -> pd.Series:
    metrics = harness.table(out, "metrics")
    return metrics[metrics["metric"] == "psnr"].set_index(["image_id", "stage"])["value"]


@pytest.mark.slow
def test_optimisation_agrees_where_rounding_differs(tmp_path: Path) -> None:
    """Adam amplifies rounding: the same rows, and a PSNR within 0.1 dB."""
    items = crops(tmp_path / "in")
    one = run(items, tmp_path / "one", 1, 1, **TINY)
    two = run(items, tmp_path / "two", 2, 4, **TINY)
    a, b = psnr(one), psnr(two)
    assert len(a) == 16
    assert a.index.equals(b.index)
    assert np.abs(a - b).max() < 0.1
    for name in ("images", "latents", "masks", "deltas"):
        left, right = (harness.table(out, name) for out in (one, two))
        assert list(left["image_id"]) == list(right["image_id"]), name
