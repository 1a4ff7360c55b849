"""A driver or a worker is killed at every point of the protocol; the run ends as if nobody had.

`make test-faults` runs all cases, `make test` one in an object store.
"""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

slow = pytest.mark.slow
DRIVER = ("after-plan", "before-manifest", "after-manifest", "mid-publish")
DRIVER += ("before-staging-cleanup",)
WORKER = ("mid-shard", "staged-one-table")
# The second shard, for points that are passed once per shard or table: something is finished.
LATER = {"before-manifest": 2, "after-manifest": 2, "mid-publish": 10, "staged-one-table": 3}


def _cases() -> list[Any]:
    fast = {("s3", "mid-publish")}
    return [
        pytest.param(place, point, marks=() if (place, point) in fast else slow)
        for place in ("local", "s3")
        for point in (*DRIVER, *WORKER)
    ]


@pytest.mark.parametrize(("place", "point"), _cases(), indirect=["place"])
def test_a_killed_driver_is_made_up_for(
    runs: Any, reference: Any, same: Callable[..., None], place: str, point: str
) -> None:
    at = f"{point}:{LATER.get(point, 1)}"
    code, said = runs.run(place, DHR_BATCH_CRASH_AT=at, DHR_BATCH_CRASH_PID="driver")
    assert code == -signal.SIGKILL, said
    code, said = runs.run(place)
    assert code == 0, said
    same(place, reference)


@slow
@pytest.mark.parametrize("point", WORKER)
def test_a_killed_worker_is_replaced(
    runs: Any,
    reference: Any,
    same: Callable[..., None],
    place: str,
    point: str,
    tmp_path: Path,
) -> None:
    at, count = f"{point}:{LATER.get(point, 1)}", tmp_path / "passings"
    code, said = runs.run(place, DHR_BATCH_CRASH_AT=at, DHR_BATCH_CRASH_COUNT=count)
    assert code == 0, said
    assert len(re.findall(r"worker \d is lost", said)) == 1, said
    same(place, reference)


@slow
def test_twenty_kills_at_random_times(
    make_runs: Callable[..., Any],
    make_reference: Callable[..., Any],
    same: Callable[..., None],
    tmp_path: Path,
) -> None:
    # Steps that take a while: otherwise two kills would fall between start and end of the run.
    runs = make_runs(80, 1, "embed.steps=30")
    reference, place, when = make_reference(runs), tmp_path / "run", random.Random(24)
    kills, finished = 0, [0]

    def shards() -> int:
        return len(list(place.glob("_state/shards/*.json")))

    while kills < 20 and finished[-1] < 80:
        with runs.start(place) as process:
            if when.random() < 0.4:  # Any time, mostly while workers start.
                until = time.monotonic() + when.uniform(0, 0.4) * reference.seconds
                # A machine that is faster now than it was then would finish the run before.
                while time.monotonic() < until and shards() < finished[-1] + 3:
                    time.sleep(0.01)
            else:  # While shards are committed.
                while shards() == finished[-1] and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(when.uniform(0, 0.15))
            kills += process.poll() is None
            process.kill()
            process.communicate()
        finished.append(shards())
    print(f"\n{kills} kills; shards finished after each: {finished[1:]}")
    assert kills == 20
    code, said = runs.run(place)
    assert code == 0, said
    same(place, reference)


def test_a_reader_never_meets_an_unfinished_file(reference: Any) -> None:
    assert reference.reader.problems == []
    assert reference.reader.opened == len(reference.files) == 7 * 3
