"""The simulation of fed devices: its figures from known notes, and its stages in a worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.benchmarks import feeding
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.tests import no_op
from dhr_batch.tests.faults import harness
from dhr_batch.tests.faults.stages import NAMES

TURNS = {2.0: 1, 1.0: 2}


def notes(
    turns: Mapping[float, int], gap: float, cpu: float, missing: int = 0
) -> list[dict[str, Any]]:
    """Notes of a device that waits for the host for some time in each turn of 8 images."""
    found, now = [], 100.0
    waits = feeding.schedule(turns)
    for number, wait in enumerate(waits[: len(waits) - missing]):
        for stage, share in (("embed", 0.5), ("refine", 0.4), ("edit", 0.1)):
            note = {"stage": stage, "images": 8, "began": now, "cpu": number * 8 * cpu}
            now += share * wait * 8
            found.append(note | {"ended": now})
        now += gap
    return found


def test_shares_and_loads_are_those_of_known_notes() -> None:
    assert feeding.schedule(TURNS) == [1.0] * feeding.FILLING + [2.0, 1.0, 1.0, 1.0]
    slow, fast = feeding.rows_of([notes(TURNS, 2.0, 0.3)], TURNS, cores=2)
    assert (slow["wait"], fast["wait"]) == (2.0, 1.0)
    assert slow["busy_share"] == pytest.approx(16 / 18)
    assert fast["busy_share"] == pytest.approx(8 / 10)
    assert slow["host_seconds"] == fast["host_seconds"] == pytest.approx(0.3)
    assert slow["host_load"] == pytest.approx(0.3 / 2.0 / 2)
    slow, fast = feeding.rows_of([notes(TURNS, 2.0, 0.3), notes(TURNS, 0.0, 0.3)], TURNS, cores=2)
    assert slow["busy_share"] == pytest.approx(32 / 34)
    assert slow["host_load"] == pytest.approx(0.3 * 2 / 2.0 / 2)


def test_a_slower_worker_gets_fewer_batches() -> None:
    both = [notes(TURNS, 0.0, 0.3), notes(TURNS, 2.0, 0.3, missing=1)]
    _, fast = feeding.rows_of(both, TURNS, cores=2)
    assert fast["busy_share"] == pytest.approx(24 / 26)
    with pytest.raises(CommandError, match="too few batches"):
        feeding.rows_of([notes(TURNS, 2.0, 0.3, missing=3)], TURNS, cores=2)


def test_rows_beyond_the_cores_do_not_count() -> None:
    rows = [{"busy_share": 0.5, "host_load": 0.81}]
    assert feeding.summary(rows)["busy_share"] is None
    rows += [{"busy_share": share, "host_load": 0.8} for share in (0.97, 0.93, 0.99, 0.95)]
    found = feeding.summary(rows)
    assert (found["busy_share"], found["rows_counted"], found["warnings"]) == (0.93, 4, [])
    assert found["rows"] == rows


def test_its_stages_fill_what_a_run_writes(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    items = harness.photographs(tmp_path / "in", ["a.png", "b.png"])
    host = {"align": NAMES["align"], "segment": NAMES["segment"], "measure": no_op.NAMES["measure"]}
    layers = feeding.settings(256, 1, [0.01], str(tmp_path / "log"))
    made = harness.make(items, **{k: v for layer in layers for k, v in layer.items()} | host)
    built = Worker(Settings(made.config, False, "", "cpu", str(tmp_path / "run"), divided=True))
    built.setup()
    receipt = built.run_shard(made.shards[0], "a")
    assert receipt.ok == 2
    assert receipt.files["edits"].rows == 16
    assert receipt.files["deltas"].rows == 4
    (log,) = (tmp_path / "log").iterdir()
    stages = [json.loads(line)["stage"] for line in log.read_text().splitlines()]
    assert stages == ["embed", "refine", "edit"]
