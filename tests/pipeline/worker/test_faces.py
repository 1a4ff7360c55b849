"""Photographs with several faces in a worker: rows, failures, receipts and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.verify import verify
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.tests.faults import harness
from dhr_batch.tests.pipeline.crowds import CROWD, Crowd, Picky

# Each has so many faces, of which those named after the hyphen fail.
NAMES = ["1-.png", "5-13.png", "1-0.png", "3-012.png", "3-0.png", "9-8.png"]
ROWS = [
    "1-.png", "5-13.png", "5-13.png#2", "5-13.png#4", "3-0.png#1", "3-0.png#2",
    "9-8.png", *(f"9-8.png#{n}" for n in range(1, 8)),
]  # fmt: skip
FACES = {"5-13.png": [0, 2, 4], "3-0.png": [1, 2], "9-8.png": [*range(8)]}


@pytest.fixture(autouse=True)
def noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crowd, "aligned", [])
    monkeypatch.setattr(Picky, "batches", [])


def planned(folder: Path, names: list[str] = NAMES, **settings: Any) -> Plan:
    return harness.make(harness.photographs(folder, names), **CROWD, **settings)


def worker(made: Plan, out: object) -> Worker:
    built = Worker(Settings(made.config, False, "", "cpu", str(out)))
    built.setup()
    return built


def computed(made: Plan, out: Path) -> RunFolder:
    folder = RunFolder(out)
    folder.lock()
    folder.write_plan(made.stored())
    built = worker(made, folder.storage.address)
    for shard in made.shards:
        receipt = built.run_shard(shard, folder.new_attempt(shard.index, 1))
        folder.commit(shard.index, receipt, len(shard.items))
    folder.unlock()
    return folder


@pytest.mark.parametrize("size", [1, 2, 4, 32])
def test_a_photograph_ends_in_rows_or_in_quarantine(tmp_path: Path, size: int) -> None:
    made = planned(tmp_path / "in", shard_size=6, batch_size=size)
    built, (shard,) = worker(made, tmp_path / "out"), made.shards
    receipt = built.run_shard(shard, "a")
    assert (receipt.ok, receipt.quarantined, receipt.faces) == (4, 2, FACES)
    assert [f.image_id for f in receipt.failures] == ["1-0.png", "3-012.png"]
    assert sum(event.done for event in built.events().events) == len(NAMES)
    assert max(map(len, Picky.batches)) <= size
    # The same files as image by image, and so for every size.
    built.isolate(shard, "alone", {})
    alone = [built.next_image() for _ in range(len(NAMES) + 1)][-1]
    assert alone is not None
    assert (alone.files, alone.faces) == (receipt.files, receipt.faces)


def test_rows_tell_which_faces_failed_and_why(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = computed(planned(tmp_path / "in", shard_size=4, batch_size=2), out)
    for table in ("latents", "metrics"):
        assert list(harness.table(out, table)["image_id"]) == ROWS
    images = harness.table(out, "images")
    notes = dict(zip(images["image_id"], images["note"], strict=True))
    why = "left out in embed as ArithmeticError"
    assert {i: note for i, note in notes.items() if note} == {
        "5-13.png#4": f"5-13.png#1 {why}: 5-13.png#1: face 1 diverged, no way out; "
        f"5-13.png#3 {why}: 5-13.png#3: face 3 diverged, no way out",
        "3-0.png#2": f"3-0.png {why}: 3-0.png: face 0 diverged, no way out",
        "9-8.png#7": f"9-8.png#8 {why}: 9-8.png#8: face 8 diverged, no way out",
    }
    failed = harness.table(out, "quarantine")
    assert list(failed["image_id"]) == ["1-0.png", "3-012.png"]
    assert failed["message"][1].endswith("(the other 2 faces failed as well)")
    assert set(images["source"]) == {"1-.png", "5-13.png", "3-0.png", "9-8.png"}
    found = verify(out)
    assert (found.images, found.done, found.quarantined, found.problems) == (6, 4, 2, [])
    assert sum(shard.images for shard in folder.committed().values()) == len(NAMES)


def test_many_faces_are_not_in_memory_at_once(tmp_path: Path) -> None:
    """The reader is one batch ahead, and no more."""
    ahead = []

    class Counting(Picky):
        def process(self, records: Any) -> Any:
            done = sum(map(len, Picky.batches))
            ahead.append(len(Crowd.aligned) - done - len(records))
            return super().process(records)

    made = planned(tmp_path / "in", ["60-.png", "1-.png"], shard_size=2, batch_size=4)
    built = worker(made, tmp_path / "out")
    built.stages[1] = Counting(built.stages[1].options)
    receipt = built.run_shard(made.shards[0], "a")
    assert receipt.files["latents"].rows == len(Crowd.aligned) == 61
    assert max(ahead) <= 4
