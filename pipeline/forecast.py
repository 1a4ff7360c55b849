"""Forecast the remaining time of a run from what its workers have done and are doing.

For each stage there is a mean of the seconds per image. It begins with the expected costs
(`planning.costs`) and follows what was measured: the times of batches that have passed the stage,
and the seconds per step of those in it. The speed of the machine, which affects all stages alike,
is known after the first measurements. The first batch of a stage in a process also loads files and
fills caches, so it counts little once there are others. Images that fail are not computed to the
end, so the share of images that fail in each stage is estimated as well. The time left is the time
until the last worker finishes, if each worker gets the next shard when it is idle.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The weight of an image in the first batch of a stage, relative to one of a later batch.
_FIRST = 0.1
# The weight, in images, of the expected costs, and of the speed that was expected of the machine.
_EXPECTED, _SPEED = 0.02, 0.005
# The share of a mean that remains after each further batch, so that it follows slow changes.
_KEPT = 0.98
# With more shards than this for each worker, the last one does not matter.
_ROUNDS = 50
# Seconds in which the time shown moves towards a new forecast: the least, and a share of the time.
_AT_LEAST, _SHARE = 3.0, 0.02
# The smallest share of a stage that is left while it takes longer than expected.
_ALMOST = 0.05


@dataclass(frozen=True)
class Flight:
    """A batch of which a worker has begun the computation and has not written the results.

    Attributes:
        shard: The number of its shard.
        size: The number of its images.
        alive: The number of these that have not failed. One of several faces of a photograph counts
            as a share of it, here and in `Passage`.
        stage: The stage that it is in or waits for; "" if it has passed all.
        seconds: The time since this stage began; 0 if the batch waits.
        step: The number of finished steps of the stage.
        steps: The number of its steps; 0 if it has told none.
        pace: Seconds per step, without the first one; 0 if that is unknown.
        first: Whether it is the first batch of this stage in its process.
    """

    shard: int
    size: float
    alive: float
    stage: str
    seconds: float = 0.0
    step: int = 0
    steps: int = 0
    pace: float = 0.0
    first: bool = False


@dataclass(frozen=True)
class Passage:
    """A batch that has passed a stage.

    Attributes:
        stage: The stage.
        entered: The number of images that were computed.
        left: The number of these that have not failed.
        seconds: The time that the stage took.
        steady: The time without what only the first batch of a process needs, as far as the steps
            of the stage tell.
        first: Whether it was the first batch of this stage in its process.
    """

    stage: str
    entered: float
    left: float
    seconds: float
    steady: float
    first: bool = False


@dataclass
class _Mean:
    images: float = 0.0
    seconds: float = 0.0

    def add(self, images: float, seconds: float) -> None:
        self.images = self.images * _KEPT + images
        self.seconds = self.seconds * _KEPT + seconds


class Forecast:
    """The forecast of a run. Times are seconds of one clock, which the caller reads.

    Args:
        costs: The expected seconds of each stage per image, in the order of the stages.
        lanes: The stages by the thread in which a worker runs them, or by the device on which they
            take turns.
        shard: The number of images of a shard.
        known: Whether the costs are those of this machine, and not only their ratios.

    Attributes:
        hands: The number of unfinished images of the shards that each worker has, by worker.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        lanes: Sequence[Sequence[str]] = (),
        shard: int = 1,
        known: bool = False,
    ) -> None:
        self._costs, self._known, self._shard = dict(costs), known, max(1, shard)
        self._lanes = [tuple(lane) for lane in lanes] or [tuple(costs)]
        self.hands: dict[int, int] = {0: 0}
        self._flights: dict[int, tuple[float, tuple[Flight, ...]]] = {}
        self._first: defaultdict[str, _Mean] = defaultdict(_Mean)
        self._later: defaultdict[str, _Mean] = defaultdict(_Mean)
        self._entered: defaultdict[str, float] = defaultdict(float)
        self._failed: defaultdict[str, float] = defaultdict(float)
        self._shown: tuple[float, float] | None = None

    def hear(
        self, worker: int, now: float, flights: Sequence[Flight], passed: Sequence[Passage]
    ) -> None:
        """Note what a worker is computing, and what it has computed since its last report."""
        self._flights[worker] = now, tuple(flights)
        for own in passed:
            self._entered[own.stage] += own.entered
            self._failed[own.stage] += own.entered - own.left
            if own.entered:
                means = self._first if own.first else self._later
                means[own.stage].add(own.entered, own.steady if own.first else own.seconds)

    def correct(self) -> None:
        """Show the next forecast as it is, and not as a small change of the one before."""
        self._shown = None

    def forget(self, worker: int) -> None:
        """Forget the batches of a worker that was lost."""
        self._flights.pop(worker, None)

    def costs(self) -> dict[str, float] | None:
        """Return the present means of the seconds of each stage, per image that enters it.

        None is returned while nothing is known about the speed of the machine.
        """
        paced = self._paced()
        images: dict[str, float] = {}
        seconds: dict[str, float] = {}
        for stage in self._costs:
            first, later, now = self._first[stage], self._later[stage], paced.get(stage, _Mean())
            images[stage] = _FIRST * first.images + later.images + now.images
            seconds[stage] = _FIRST * first.seconds + later.seconds + now.seconds
        expected, all_costs = 0.0, sum(self._costs.values())
        measured = sum(seconds.values())
        if self._known:
            expected += _SPEED * all_costs
            measured += _SPEED * all_costs
        expected += sum(count * self._costs[stage] for stage, count in images.items())
        if expected <= 0:
            # No costs were expected, so nothing is known but the measured times.
            return {s: seconds[s] / images[s] if images[s] else 0.0 for s in seconds} or None
        if not measured:
            return None
        speed = measured / expected
        return {
            stage: (_EXPECTED * speed * cost + seconds[stage]) / (_EXPECTED + images[stage])
            for stage, cost in self._costs.items()
        }

    def left(self, images: int, now: float) -> float | None:
        """Return the seconds until all images are finished; None while nothing is known.

        Args:
            images: The number of unfinished images, those in the hands of workers included.
            now: The present time.
        """
        costs = self.costs()
        if costs is None:
            return None
        found = self._makespan(images, costs, now)
        if self._shown is not None:
            before, shown = self._shown
            passed = max(0.0, now - before)
            kept = math.exp(-passed / max(_AT_LEAST, _SHARE * found))
            found += (max(0.0, shown - passed) - found) * kept
        self._shown = now, found
        return found

    def done(self, now: float) -> float:
        """Return how many images the finished parts of the batches in flight amount to."""
        costs = self.costs()
        if costs is None or not (whole := sum(self._new(costs).values())):
            return 0.0
        total = 0.0
        for heard, flights in self._flights.values():
            for flight in flights:
                rest = sum(self._rest(flight, costs, now - heard).values())
                total += flight.size * max(0.0, 1 - rest / (whole * (flight.size or 1)))
        return total

    def at(self, worker: int) -> Flight | None:
        """Return the batch of a worker that is in a stage, the last one if there are several."""
        flights = [own for own in self._flights.get(worker, (0.0, ()))[1] if own.seconds]
        return flights[-1] if flights else None

    def _paced(self) -> dict[str, _Mean]:
        """Return the seconds of the stages in progress whose steps have a pace."""
        found: defaultdict[str, _Mean] = defaultdict(_Mean)
        for _, flights in self._flights.values():
            for own in flights:
                if own.pace and own.step > 2:
                    weight = own.alive * (_FIRST if own.first else own.step / own.steps)
                    found[own.stage].images += weight
                    found[own.stage].seconds += weight * own.pace * own.steps / (own.alive or 1)
        return found

    def _new(self, costs: Mapping[str, float]) -> dict[str, float]:
        """Return the expected seconds of each stage for an image that was not begun."""
        alive, found = 1.0, {}
        for stage, cost in costs.items():
            found[stage] = alive * cost
            alive *= 1 - self._failed[stage] / (self._entered[stage] + 1)
        return found

    def _rest(self, flight: Flight, costs: Mapping[str, float], age: float) -> dict[str, float]:
        """Return the seconds that a batch still needs in each stage."""
        stages = list(costs)
        if flight.stage not in costs:
            return {}
        rest = {s: costs[s] * flight.alive for s in stages[stages.index(flight.stage) :]}
        if flight.seconds:
            whole, spent = rest[flight.stage], flight.seconds + age
            left = max(_ALMOST * whole, whole - spent)
            if flight.step and flight.steps:
                # The steps tell more than the clock, which also goes on if the first one is slow.
                told = whole * (1 - flight.step / flight.steps)
                left = max(told - min(age, whole / flight.steps), _ALMOST * whole / flight.steps)
            rest[flight.stage] = left
        return rest

    def _makespan(self, images: int, costs: Mapping[str, float], now: float) -> float:
        """Return the seconds until the last worker is finished."""
        new = self._new(costs)
        per_image = max(sum(new.get(stage, 0.0) for stage in lane) for lane in self._lanes)
        ends = []
        # A worker may have told that a batch is written before its shard counts as finished.
        free = max(
            0.0, images - sum(own.size for _, batches in self._flights.values() for own in batches)
        )
        for worker, hand in (self.hands or {0: 0}).items():
            heard, flights = self._flights.get(worker, (now, ()))
            rests = [self._rest(flight, costs, now - heard) for flight in flights]
            begun = sum(flight.size for flight in flights)
            further = min(max(0.0, hand - begun), free)
            longest = max((sum(rest.values()) for rest in rests), default=0.0)
            lanes = (
                sum(rest.get(stage, 0.0) for rest in rests for stage in lane)
                + further * sum(new.get(stage, 0.0) for stage in lane)
                for lane in self._lanes
            )
            ends.append(max(longest, *lanes))
        queue = max(0, images - sum(self.hands.values()))
        if queue > _ROUNDS * len(ends) * self._shard:
            return (sum(ends) + queue * per_image) / len(ends)
        heapq.heapify(ends)
        while queue > 0:
            heapq.heapreplace(ends, ends[0] + min(queue, self._shard) * per_image)
            queue -= self._shard
        return max(ends)
