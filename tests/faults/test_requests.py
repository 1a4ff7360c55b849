"""Requests to an object store, counted, against the model in `benchmarks/scaling.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dhr_batch.benchmarks import scaling
from dhr_batch.pipeline.planning import resume
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.storage.objects import ObjectStorage
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.tests import no_op, overhead

SHARDS = 3


@pytest.fixture
def counted(faults: Any, bucket: str, tmp_path: Path) -> dict[str, dict[str, int]]:
    """Requests by what they were for: a run of three shards, and a second start on it."""
    place = f"{bucket}/run"
    plan = overhead.made(no_op.write_images(tmp_path, 2 * SHARDS), 1, 2)
    config = plan.config
    worker = Worker(Settings(config, aligned=True, split="", device="cpu", out=place))
    worker.setup()
    counts: dict[str, dict[str, int]] = {}

    def note(what: str) -> None:
        counts[what] = dict(faults.requests)
        faults.requests.clear()

    run = RunFolder(place)
    run.lock()
    run.write_plan(plan.stored())
    note("start")
    for shard in plan.shards:
        attempt = run.new_attempt(shard.index, 1)
        receipt = worker.run_shard(shard, attempt)
        note("worker")
        run.commit(shard.index, receipt, len(shard.items))
        note("driver")
    assert len(run.committed()) == SHARDS
    note("end")
    run.unlock()
    faults.requests.clear()
    again = RunFolder(place)
    again.lock()
    resume.continued(again, place, plan)
    assert len(again.recover()) == SHARDS
    note("resume")
    again.unlock()
    return counts


def test_requests_are_those_of_the_model(counted: dict[str, dict[str, int]]) -> None:
    print(f"\n{counted}")
    tables = scaling.ScalingRun(1, 1, 1.0, 1).tables
    expected = scaling.shard_requests(tables)
    ends = counted["end"]["GET"] / SHARDS
    shard = {
        name: counted["worker"].get(name, 0) + counted["driver"].get(name, 0)
        for name in (counted["worker"] | counted["driver"])
    }
    assert shard | {"GET": ends} == expected
    assert counted["resume"] == scaling.resume_requests(SHARDS, tables)


def test_large_files_take_a_request_per_part(faults: Any, bucket: str) -> None:
    storage = ObjectStorage(f"{bucket}/run")
    for count in (100_000, 5 * 2**20, 5 * 2**20 + 1, 12 * 2**20):
        faults.requests.clear()
        with storage.stage(f"_staging/{count}") as folder:
            (folder / "images.parquet").write_bytes(bytes(count))
        assert faults.requests.total() == scaling.upload_requests(count), count
