"""What a driver holds per image and per finished shard, counted in bytes that are allocated."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.planning import resume
from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import manifest_key
from dhr_batch.tests import overhead


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return overhead.made(overhead._listed(20_000), 8, 32)


def test_a_resume_makes_no_second_copy_of_the_images(
    plan: Plan, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The text of the plan takes 28 bytes per image, its place in a shard 8; ids alone take 65."""
    run = RunFolder(tmp_path)
    run.write_plan(plan.stored())
    request.getfixturevalue("traced")
    continued = resume.continued(run, tmp_path, plan)
    _, peak = tracemalloc.get_traced_memory()
    print(f"\n{peak / plan.images:.0f} bytes per image")
    assert continued.shards == plan.shards
    assert peak / plan.images < 80


def test_of_a_manifest_little_is_kept(
    plan: Plan, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    facts = {"rows": 32, "bytes": 123_456, "sha256": "0" * 64}
    files = dict.fromkeys(overhead._TABLES, facts)
    run = RunFolder(tmp_path)
    for shard in range(2000):
        receipt: dict[str, Any] = {"attempt": f"{shard}.1.x", "files": files, "models": ["a"]}
        counts = {"ok": 32 - shard % 3, "quarantined": shard % 3, "errors": {"no_face": shard % 3}}
        path = tmp_path / manifest_key(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(receipt | counts))
    request.getfixturevalue("traced")
    finished = run.committed()
    # Reading leaves cycles; what counts is what is kept.
    gc.collect()
    # Threads that tests before this one left behind may allocate as well.
    own = [tracemalloc.Filter(True, f"*{part}*") for part in ("/pipeline/", "/json/")]
    traces = tracemalloc.take_snapshot().filter_traces(own).traces
    kept = sum(trace.size for trace in traces)
    print(f"\n{kept / len(finished):.0f} bytes per shard")
    assert sum(shard.quarantined for shard in finished.values()) == 1999
    assert kept / len(finished) < 500
