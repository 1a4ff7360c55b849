"""Rows do not depend on how many workers there are or how many images are computed together."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from skimage import data

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.tests.faults import harness

SHARD = 4
# What tells the rows of a table apart.
KEYS = {
    "images": ["image_id", "shard", "kind", "edit_name", "edit_strength"],
    "latents": ["image_id", "shard", "space"],
    "masks": ["image_id", "shard", "kind"],
    "deltas": ["image_id", "shard", "tensor", "kind"],
    "edits": ["image_id", "shard", "edit", "strength"],
    "metrics": ["image_id", "shard", "stage", "metric", "model"],
    "quarantine": ["image_id", "shard"],
}
TINY = {
    "generator": "tiny",
    "align": {"name": "ffhq"},
    "embed": {"name": "w+", "steps": 2, "perceptual": "tiny"},
    "segment": {"name": "dhr", "parser": "none", "perceptual": "tiny"},
    "refine": {"name": "dhr", "steps": 2, "perceptual": "tiny"},
    "edit": {"name": "directions", "edits": [{"direction": "smile", "strengths": [2.0]}]},
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
    chosen = {"workers": workers, "batch_size": batch, "shard_size": SHARD, **settings}
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
    equal_bytes(tmp_path, [1, 2, 8], [1, 2, 4])


def crops(folder: Path, images: int) -> list[Item]:
    """Squares of one photograph, up to 32."""
    folder.mkdir()
    photo, items = data.astronaut(), []
    corners = itertools.product(range(0, 281, 40), range(60, 241, 60))
    for i, (y, x) in enumerate(itertools.islice(corners, images)):
        stream = io.BytesIO()
        Image.fromarray(photo[y : y + 200, x : x + 200]).resize((32, 32)).save(stream, "PNG")
        (folder / f"{i:02}.png").write_bytes(stream.getvalue())
        items.append(harness.item(folder, f"{i:02}.png"))
    return items


def metrics(out: Path) -> pd.Series:
    return harness.table(out, "metrics").set_index(KEYS["metrics"])["value"]


def independent(folder: Path, points: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Runs with so many workers and images in a batch, against the first one.

    Adam amplifies rounding, which depends on the batch alone: batches of one size give the same
    bytes, others the same rows and nearly the same PSNR. Returns how many workers made rows of
    each run: one that starts late may find no shard left.
    """
    items = crops(folder / "in", SHARD * max(count for count, _ in points))
    names = [item.image_id for item in items]
    outs = {point: run(items, folder / "{}-{}".format(*point), *point, **TINY) for point in points}
    base, busy = outs[points[0]], {}
    for (count, batch), out in outs.items():
        manifests = [json.loads(p.read_bytes()) for p in out.glob("_state/shards/*.json")]
        busy[count, batch] = len({manifest["worker"]["number"] for manifest in manifests})
        print(f"\n{busy[count, batch]} of {count} workers, batches of {batch}", end="")
        assert list(harness.table(out, "latents")["image_id"]) == names
        for name, keys in KEYS.items():
            rows, expected = (harness.table(o, name)[keys] for o in (out, base))
            assert rows.equals(expected), name
        difference = (metrics(out) - metrics(base)).abs()
        assert not difference.isna().any()
        largest = difference.groupby("metric").max()
        print(":", ", ".join(f"{name} {value:.2g}" for name, value in largest.items()))
        # A step more or less changes 0.07 dB at least. How far rounding goes depends on the
        # processor; less than half of a step cannot be a step.
        assert largest["psnr"] < 0.07 / 2
        peers = [outs[point] for point in points if point[1] == batch]
        assert harness.published(out) == harness.published(peers[0])
    return busy


def test_optimised_rows_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    independent(tmp_path, [(1, 1), (1, 4), (2, 4)])


@pytest.mark.slow
def test_optimised_rows_depend_neither_on_workers_nor_on_the_batch(tmp_path: Path) -> None:
    busy = independent(tmp_path, list(itertools.product([1, 2, 8], [1, 2, 4])))
    for (count, _), active in busy.items():
        assert min(count, 2) <= active <= count
