"""The file that says what a run is doing."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from dhr_batch.pipeline.progress import State
from dhr_batch.pipeline.status import Status


class Clock:
    """Time that only passes where the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "time", lambda: self.now)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def made(state: State, **options: Any) -> tuple[Status, list[dict[str, Any]]]:
    written: list[dict[str, Any]] = []
    return Status(state, lambda content: written.append(json.loads(content)), **options), written


def test_it_is_written_every_few_seconds_and_on_demand(clock: Clock) -> None:
    status, written = made(State(total=10, shards=2), every=2.0)
    for _ in range(10):
        status.update(list)
        clock.now += 0.5
    assert len(written) == 3
    status.update(list, now=True)
    status.update(list, now=True)
    assert len(written) == 5


def test_rates_and_the_time_left(clock: Clock) -> None:
    state = State(total=1000, shards=10, before=50, started=clock.now)
    status, written = made(state)
    for _ in range(100):
        status.update(list, now=True)
        clock.now += 10
        state.done += 1
    clock.now += 300
    state.done += 300
    state.failures["no_face"] += 7
    status.update(lambda: [{"worker": 0, "what": "shard 3: embed 1-4 of 32"}], now=True)
    last = written[-1]
    assert last["images"] == {"total": 1000, "done": 400, "quarantined": 0, "before": 50}
    assert last["images_per_second"]["overall"] == pytest.approx(400 / 1300)
    assert last["images_per_second"]["last_5_minutes"] == pytest.approx(1.0, rel=0.1)
    assert last["seconds_left"] == pytest.approx(600, rel=0.1)
    assert last["errors"] == {"no_face": 7}
    assert last["workers"][0]["what"].startswith("shard 3")
    assert (last["started"], last["updated"]) == (1000.0, clock.now)
    assert last["driver"]["pid"] == os.getpid()


def test_throughput_goes_on_and_stays_small(clock: Clock) -> None:
    state = State(total=10**6, shards=10, before=50)
    status, written = made(state, points=[[900.0, 20], [950.0, 50]])
    for _ in range(2000):
        status.update(list, now=True)
        clock.now += 2
        state.done += 3
    points = written[-1]["throughput"]
    assert 200 <= len(points) <= 500
    assert points[0] == [900.0, 20]
    assert points == sorted(points)
    assert points[-1][1] == pytest.approx(50 + state.done, rel=0.01)
    assert max(len(json.dumps(content)) for content in written[-10:]) < 20_000
