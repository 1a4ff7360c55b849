"""What a worker tells about batches that are not written yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dhr_batch.pipeline.forecast import Flight, Passage
from dhr_batch.pipeline.worker import flights as module
from dhr_batch.pipeline.worker.flights import Flights
from dhr_batch.pipeline.worker.messages import Report
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages.record import Record
from dhr_batch.tests.faults import harness
from dhr_batch.tests.pipeline.worker.test_worker import Asking


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_a_batch_on_its_way(clock: Clock) -> None:
    flights = Flights(("embed", "refine"))
    good, bad = Record("a", "a"), Record("b", "b").failed("align", "no_face", "none")
    batch = [good, bad, replace(good, image_id="c")]
    flights.begin("x", 7, "embed", batch)
    for step, seconds in ((1, 10), (2, 1), (3, 1)):
        clock.now += seconds
        flights.step("embed", step, 4)
    clock.now += 0.5
    (flight,) = flights.flying()
    assert flight == Flight(7, 3, 2, "embed", 12.5, 3, 4, pace=1.0, first=True)
    flights.end("embed", [good, bad, bad])
    # The first step took nine seconds longer than the others.
    assert list(flights.passed()) == [Passage("embed", 2, 1, 12.5, 3.5, first=True)]
    assert list(flights.passed()) == []
    assert flights.flying() == [Flight(7, 3, 1, "refine", first=True)]
    # It waits, then goes on beside the next one, which is no longer the first.
    flights.begin("x", 7, "refine", batch)
    flights.begin("x", 7, "embed", [Record("d", "d")])
    clock.now += 2
    flights.end("refine", batch)
    assert [own.stage for own in flights.flying()] == ["", "embed"]
    assert [own.first for own in flights.flying()] == [True, False]
    flights.written("x", batch)
    assert [own.stage for own in flights.flying()] == ["embed"]
    flights.drop("another")
    assert len(flights.flying()) == 1
    flights.drop("x")
    assert flights.flying() == []


def test_a_worker_reports_the_steps_of_a_batch(tmp_path: Path) -> None:
    items = harness.photographs(tmp_path / "in", [f"good-{i}.png" for i in range(2)])
    plan = harness.make(items, shard_size=2, batch_size=2)
    reports: list[Report] = []
    worker = Worker(Settings(plan.config, plan.dataset.aligned, "", "cpu", str(tmp_path / "out")))
    worker.setup()

    def embed(records: object) -> None:
        for step in (1, 2):
            worker.stages[0].context.progress("embed", step, 5)
        reports.append(worker.events())

    context = worker.stages[0].context
    worker.stages = [Asking("align", lambda records: None), Asking("embed", embed)]
    worker.stages[0].context = context
    worker.run_shard(plan.shards[0], "a")
    (report,) = reports
    (flight,) = report.flights
    assert (flight.stage, flight.step, flight.steps, flight.size) == ("embed", 2, 5, 2)
    assert report.events[-1].what == "shard 0: embed 1-2 of 2, step 2 of 5"
    assert [own.stage for own in report.passed] == ["align"]
    after = worker.events()
    assert (after.flights, [own.stage for own in after.passed]) == ([], ["embed"])


def test_a_face_is_a_share_of_its_photograph(clock: Clock) -> None:
    flights = Flights(("align", "embed"))
    record = Record("a", "a")
    faces = [replace(record, face_index=number, faces=4) for number in range(4)]
    flights.begin("x", 0, "align", [record])
    flights.end("align", faces[:1])
    flights.begin("x", 0, "embed", faces[:3])
    assert [own.size for own in flights.flying()] == [0.75]
    flights.end("embed", [faces[0], faces[1].failed("embed", "diverged", "no"), faces[2]])
    assert [(own.entered, own.left) for own in flights.passed()] == [(0.25, 0.25), (0.75, 0.5)]
