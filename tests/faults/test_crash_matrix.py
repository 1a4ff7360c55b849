"""A driver is killed at every point of the protocol, alone or with its machine; the run ends as if
nobody had. `test_node_loss.py` does the same to workers.

`make test-faults` runs all cases, `make test` one in an object store.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.tests.faults import processes

slow = pytest.mark.slow
DRIVER = ("after-claim", "after-plan", "before-manifest", "after-manifest", "mid-publish")
DRIVER += ("before-staging-cleanup",)
WORKER = ("mid-shard", "staged-one-table", "before-receipt")
# The second shard, for points that are passed once per shard or table: something is finished.
LATER = {"before-manifest": 2, "after-manifest": 2, "mid-publish": 10, "staged-one-table": 3}
KILLS = 20
# A shard of one image has 18 steps: its rows, seven tables twice, receipt, commit. The draws of the
# test do not finish the run before the last kill.
MOST_STEPS, SHARDS = 45, 60


def _cases() -> list[Any]:
    fast = {("s3", "mid-publish")}
    return [
        pytest.param(place, point, marks=() if (place, point) in fast else slow)
        for place in ("local", "s3")
        for point in (*DRIVER, *WORKER)
    ]


@pytest.mark.parametrize(("place", "point"), _cases(), indirect=["place"])
def test_a_killed_driver_is_made_up_for(
    bare_runs: Any, bare_reference: Any, same: Callable[..., None], place: str, point: str
) -> None:
    at = f"{point}:{LATER.get(point, 1)}"
    code, said = bare_runs.run(place, DHR_BATCH_CRASH_AT=at, DHR_BATCH_CRASH_PID="driver")
    assert code == -signal.SIGKILL, said
    code, said = bare_runs.run(place)
    assert code == 0, said
    same(place, bare_reference)


@slow
@pytest.mark.parametrize("point", [*DRIVER, *WORKER])
def test_a_driver_that_dies_with_its_machine_is_made_up_for(
    bare_runs: Any, bare_reference: Any, same: Callable[..., None], place: str, point: str
) -> None:
    """Whoever passes the point stands there, and Ray's processes and all workers end with it."""
    at = f"{point}:{LATER.get(point, 1)}"
    stop = {"DHR_BATCH_CRASH_AT": at, "DHR_BATCH_CRASH_SIGNAL": "SIGSTOP"}
    with bare_runs.start(place, **stop) as driver:
        stand: list[int] = []

        def stands() -> bool:
            stand[:] = processes.standing(processes.family(driver.pid))
            return bool(stand) or driver.poll() is not None

        try:
            processes.until(stands, f"somebody stands at {point}")
        finally:
            machine = processes.family(driver.pid)
            processes.send(machine, signal.SIGKILL)
        _, said = driver.communicate()
    print(f"\n{len(machine)} processes killed at {point}")
    assert stand, said
    assert (driver.pid in stand) == (point in DRIVER)
    code, said = bare_runs.run(place)
    assert code == 0, said
    same(place, bare_reference)


def _wait(driver: Any, counter: Path, steps: int, seconds: float = 1e9) -> float:
    """Wait for so many steps, or so long, or the end of the driver. Returns the seconds it took."""
    began = time.monotonic()
    processes.until(
        lambda: (
            (counter.exists() and counter.stat().st_size >= steps)
            or time.monotonic() - began >= seconds
            or driver.poll() is not None
        ),
        f"{steps} steps",
        seconds=600,
    )
    return time.monotonic() - began


@slow
def test_twenty_kills_at_random_times(
    make_runs: Callable[..., Any],
    make_reference: Callable[..., Any],
    same: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Each after a drawn number of steps and a part of the next one, or while workers start.

    The clock of a kill is the progress of the run, so that the speed of the machine does not
    matter. With the driver dies, every other time, its whole machine.
    """
    # Steps that take a while, so that kills fall into them.
    runs = make_runs(SHARDS, 1, "edit.edits=[]", "embed.steps=10")
    reference, place, draw = make_reference(runs), tmp_path / "run", random.Random(24)
    starting, early, finished = reference.seconds / 2, 0, []
    for start in range(2 * KILLS):
        counter = tmp_path / f"steps-{start}"
        count = {"DHR_BATCH_CRASH_AT": "any:1000000", "DHR_BATCH_CRASH_COUNT": counter}
        at_start, steps, part = draw.random() < 0.4, draw.randint(1, MOST_STEPS), draw.random()
        with runs.start(place, **count) as driver:
            if at_start:
                _wait(driver, counter, 1, part * starting)
            else:
                starting = _wait(driver, counter, 1)
                time.sleep(part * _wait(driver, counter, steps) / steps)
            alive = driver.poll() is None
            whole = processes.family(driver.pid) if start % 2 else [driver.pid]
            processes.send(whole, signal.SIGKILL)
            _, said = driver.communicate()
        if not alive and f"{SHARDS} images finished, 0 quarantined, 0 remaining" in said:
            # On a loaded machine, kills come later than they were drawn.
            same(place, reference)
            place = tmp_path / f"run-{start}"
            continue
        if not alive:  # Ray gives up its own start after 30 s, which a loaded machine may take.
            assert "timed out during startup" in said, said
            continue
        early += at_start
        finished.append(len(list(place.glob("_state/shards/*.json"))))
        if len(finished) >= KILLS and finished[-1] < SHARDS:
            break
    print(f"\n{len(finished)} kills, {early} early; shards finished after each: {finished}")
    assert len(finished) >= KILLS
    assert finished[-1] < SHARDS
    code, said = runs.run(place)
    assert code == 0, said
    same(place, reference)


def test_a_reader_never_meets_an_unfinished_file(bare_reference: Any) -> None:
    assert bare_reference.reader.problems == []
    assert bare_reference.reader.opened == len(bare_reference.files) == 7 * 3
