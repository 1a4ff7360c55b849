"""The time left of runs that are simulated: what is said after a tenth, and that it counts down."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from dhr_batch.pipeline.forecast import Flight, Forecast, Passage
from dhr_batch.pipeline.worker import flights
from dhr_batch.stages.base import Record
from dhr_batch.tests.pipeline.worker.test_flights import Clock

# Seconds that are expected per image, and the steps of the stages that have some.
EXPECTED = {"align": 0.2, "embed": 12, "segment": 0.8, "refine": 26, "edit": 3, "measure": 1.6}
STEPS = {"embed": 26, "refine": 38}
TOGETHER = [("align",), ("embed", "segment", "refine", "edit", "measure")]
DIVIDED = [("align",), ("embed", "refine", "edit"), ("segment",), ("measure",)]


@dataclass
class Run:
    """A run whose time passes as it is told.

    Attributes:
        images: How long each image takes, relative to the others.
        failing: The images that `align` refuses.
        truth: What the stages really take, relative to what is expected of them.
        load: Seconds that the first batch of a worker takes longer in each stage.
    """

    images: Sequence[float]
    failing: frozenset[int] = frozenset()
    workers: int = 1
    shard: int = 1
    batch: int = 1
    lanes: Sequence[tuple[str, ...]] = field(default_factory=lambda: TOGETHER)
    truth: dict[str, float] = field(default_factory=dict)
    load: dict[str, float] = field(default_factory=dict)
    known: bool = True

    def __post_init__(self) -> None:
        self.passages: list[tuple[float, float, int, int, Flight]] = []
        self.shards: list[tuple[float, float, int, int]] = []
        lane_of = {stage: lane for lane in self.lanes for stage in lane}
        free = [dict.fromkeys(self.lanes, 0.0) for _ in range(self.workers)]
        seen: set[tuple[int, str]] = set()
        for number, first in enumerate(range(0, len(self.images), self.shard)):
            worker = min(range(self.workers), key=lambda n: max(free[n].values()))
            ids = range(first, min(first + self.shard, len(self.images)))
            begin, begun = max(free[worker].values()), len(self.passages)
            for at in range(first, ids.stop, self.batch):
                batch = range(at, min(at + self.batch, ids.stop))
                end = begin if self.lanes is TOGETHER else 0.0
                for stage, expected in EXPECTED.items():
                    here = [i for i in batch if stage == "align" or i not in self.failing]
                    cold = (worker, stage) not in seen and bool(here)
                    seen |= {(worker, stage)} if here else set()
                    seconds = sum(self.images[i] for i in here) * expected
                    seconds *= self.truth.get(stage, 1.0)
                    lead = self.load.get(stage, 0.0) if cold else 0.0
                    start = max(end, free[worker][lane_of[stage]])
                    end = free[worker][lane_of[stage]] = start + seconds + lead
                    steps = STEPS.get(stage, 0)
                    flight = Flight(number, len(batch), len(here), stage, lead, 0, steps, 0, cold)
                    self.passages.append((start, end, worker, at, flight))
            self.shards.append((self.passages[begun][0], end, worker, len(ids)))
        self.end = max(end for _, end, *_ in self.passages)

    def polls(self, every: float) -> Iterator[tuple[float, float | None, float]]:
        """Yield the time, the forecast of the time left, and the share of the images."""
        forecast = Forecast(EXPECTED, self.lanes, self.shard, self.known)
        now, told = 0.0, set()
        stages = list(EXPECTED)
        while now < self.end:
            done = 0
            for worker in range(self.workers):
                own = [p for p in self.passages if p[2] == worker]
                hand = [s for s in self.shards if s[2] == worker and s[0] <= now < s[1]]
                flights, passed = {}, []
                for start, end, _, at, kind in own:
                    if end <= now:
                        if (at, kind.stage) not in told:
                            told.add((at, kind.stage))
                            passed.append(self._passage(kind, at, end - start))
                        if kind.stage == stages[-1]:
                            flights.pop(at, None)
                            done += kind.size
                        else:
                            after = stages[stages.index(kind.stage) + 1]
                            alive = self._alive(at, kind)
                            flights[at] = Flight(kind.shard, kind.size, alive, after)
                    elif start <= now and kind.alive:
                        flights[at] = self._now(kind, start, end, now)
                forecast.hear(worker, now, list(flights.values()), passed)
                held = sum(s[3] for s in hand)
                finished = sum(
                    k.size
                    for start, end, _, _, k in own
                    if k.stage == stages[-1] and end <= now and self.shards[k.shard][1] > now
                )
                forecast.hands[worker] = held - finished
            share = (done + forecast.done(now)) / len(self.images)
            yield now, forecast.left(len(self.images) - done, now), share
            now += every

    def _passage(self, kind: Flight, at: int, seconds: float) -> Passage:
        left = kind.alive if kind.stage != "align" else self._alive(at, kind)
        steady = seconds - (kind.seconds if kind.steps else 0)
        return Passage(kind.stage, kind.alive, left, seconds, steady, kind.first)

    def _alive(self, at: int, kind: Flight) -> int:
        return len([i for i in range(at, at + kind.size) if i not in self.failing])

    @staticmethod
    def _now(kind: Flight, start: float, end: float, now: float) -> Flight:
        load, length = kind.seconds, end - start - kind.seconds
        step, pace = 0, 0.0
        if kind.steps:
            step = max(0, int((now - start - load) / (length / kind.steps)))
            pace = length / kind.steps if step > 1 else 0.0
        spent = max(now - start, 1e-9)
        return replace(kind, seconds=spent, step=step, pace=pace)


def many(count: int, spread: float = 0.0) -> list[float]:
    own = random.Random(1)
    return [2 ** own.uniform(-spread, spread) for _ in range(count)]


SLOWER = dict(zip(EXPECTED, (1.5, 1.9, 1.2, 2.3, 1.6, 1.4), strict=True))
SOME = frozenset(random.Random(2).sample(range(60), 18))
RUNS = {
    "five images": Run(many(5)),
    "a slower machine": Run(many(5), truth=SLOWER),
    "a machine of unknown speed": Run(many(5), truth=SLOWER, known=False),
    "two workers and an odd number": Run(many(5), workers=2, truth=SLOWER),
    "few shards": Run(many(24), workers=2, shard=8, truth=SLOWER),
    "batches": Run(many(96), workers=2, shard=16, batch=8, truth=SLOWER),
    "parts beside each other": Run(many(96), shard=32, batch=8, lanes=DIVIDED, truth=SLOWER),
    "a first image that loads": Run(
        many(20), truth=SLOWER, load={"align": 5, "embed": 30, "refine": 10, "edit": 4}
    ),
    "30 % are quarantined quickly": Run(many(60), SOME, workers=2, shard=4),
    "30 % in batches": Run(many(60), SOME, shard=30, batch=6, truth=SLOWER),
    "unequal images": Run(many(60, 1.0), workers=2, truth=SLOWER),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_time_left_is_right_after_a_tenth_and_counts_down(name: str) -> None:
    run = RUNS[name]
    polls = list(run.polls(run.end / 400))
    later = [(now, left) for now, left, _ in polls if left is not None and now >= run.end / 10]
    assert len(later) > 350
    now, left = later[0]
    assert left == pytest.approx(run.end - now, rel=0.3)
    assert all(left == pytest.approx(run.end - now, abs=0.2 * run.end) for now, left in later)
    # It counts down: what it rises again in between is small beside the whole.
    rises = sum(max(0.0, b - a) for (_, a), (_, b) in pairwise(later))
    assert rises < 0.15 * run.end
    shares = [share for *_, share in polls]
    assert all(b > a - 0.05 for a, b in pairwise(shares))
    assert shares[-1] > 0.9


def test_a_worker_tells_what_the_forecast_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, but batches are told as the threads of a worker do."""
    clock, images, loading = Clock(), 5, {"align": 5, "embed": 30, "refine": 10}
    monkeypatch.setattr(flights, "time", clock)
    told, forecast = flights.Flights(tuple(EXPECTED)), Forecast(EXPECTED, TOGETHER, known=True)
    forecast.hands = {0: 1}
    truth = {stage: SLOWER[stage] * seconds for stage, seconds in EXPECTED.items()}
    polls: list[tuple[float, float | None, float]] = []
    for done in range(images):
        name, batch = f"attempt {done}", [Record(f"{done}.png", f"{done}.png")]
        for stage, seconds in truth.items():
            told.begin(name, done, stage, batch)
            clock.now += 0 if done else loading.get(stage, 0)
            parts = STEPS.get(stage, 4)
            for part in range(1, parts + 1):
                clock.now += seconds / parts
                if stage in STEPS:
                    told.step(stage, part, parts)
                forecast.hear(0, clock.now, told.flying(), list(told.passed()))
                left = forecast.left(images - done, clock.now)
                polls.append((clock.now, left, done + forecast.done(clock.now)))
            told.end(stage, batch)
        told.written(name, batch)
        told.drop(name)
    whole = images * sum(truth.values()) + sum(loading.values())
    assert clock.now == pytest.approx(Clock.now + whole)
    for now, left, share in polls:
        if now >= Clock.now + whole / 10:
            assert left == pytest.approx(clock.now - now, abs=0.12 * whole)
            assert share / images == pytest.approx(1 - (clock.now - now) / whole, abs=0.12)


def test_the_last_images_of_two_workers_are_not_counted_again() -> None:
    """Image 0 is finished, but not yet known to be; worker 1 writes image 1."""
    forecast = Forecast(EXPECTED, TOGETHER, known=True)
    forecast.hands = {0: 1, 1: 1}
    passed = [Passage(stage, 1, 1, cost, cost) for stage, cost in EXPECTED.items()]
    forecast.hear(0, 50.0, [], passed)
    forecast.hear(1, 50.0, [Flight(1, 1, 1, "")], passed)
    assert forecast.left(1, 50.0) == 0
    forecast.correct()
    forecast.hear(1, 50.0, [Flight(1, 1, 1, "measure", 0.5)], [])
    assert forecast.left(1, 50.0) == pytest.approx(EXPECTED["measure"] - 0.5, rel=0.1)
