"""How far a worker is with each batch between its photographs and its tables."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress

from dhr_batch.pipeline.forecast import Flight, Passage
from dhr_batch.stages.record import Record


@dataclass
class _Batch:
    shard: int
    size: float
    alive: float
    entered: list[bool]
    stage: str = ""
    began: float = 0.0
    step: int = 0
    steps: int = 0
    first_step: float = 0.0
    last_step: float = 0.0
    first: bool = False

    @property
    def pace(self) -> float:
        """Seconds per step, without the first one; 0 before the second."""
        return (self.last_step - self.first_step) / (self.step - 1) if self.step > 1 else 0.0


def _images(records: Iterable[Record]) -> float:
    """Return how many images records amount to, where each face is a share of its photograph."""
    return sum(1 / record.faces for record in records)


class Flights:
    """The batches in flight. The threads of a worker change it, and another one reads it.

    Args:
        stages: The stages in order.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        self._next = dict(zip(stages, [*stages[1:], ""], strict=True))
        self._batches: dict[tuple[str, str], _Batch] = {}
        self._in_stage: dict[str, _Batch] = {}
        self._passed: deque[Passage] = deque()
        self._known: set[str] = set()

    def begin(self, attempt: str, shard: int, stage: str, records: Sequence[Record]) -> None:
        """Note that a batch begins a stage. A stage has one batch at a time.

        Args:
            attempt: The name of the attempt at the shard.
            shard: The number of the shard.
            stage: The stage.
            records: The batch. It is known by its first image.
        """
        entered = [record.failure is None for record in records]
        alive = _images(compress(records, entered))
        batch = _Batch(shard, _images(records), alive, entered, stage, time.monotonic())
        batch.first = stage not in self._known
        self._in_stage[stage] = self._batches[attempt, records[0].image_id] = batch

    def step(self, stage: str, step: int, steps: int) -> None:
        """Note a step of a stage (`Context.progress`)."""
        if batch := self._in_stage.get(stage):
            now = time.monotonic()
            if step == 1 or not batch.steps:
                batch.first_step = now
            batch.last_step, batch.steps, batch.step = now, steps, step

    def end(self, stage: str, records: Sequence[Record]) -> None:
        """Note that the batch in a stage has passed it."""
        batch, now = self._in_stage.pop(stage), time.monotonic()
        # The number of faces of a photograph is known once it is aligned.
        batch.size, seconds = _images(records), now - batch.began
        entered = _images(compress(records, batch.entered))
        if entered:
            self._known.add(stage)
        batch.alive = _images(record for record in records if record.failure is None)
        # What comes before the first step is longer than a step in the first batch.
        lead = batch.first_step - batch.began - batch.pace if batch.pace else 0.0
        steady = seconds - max(0.0, lead)
        self._passed.append(Passage(stage, entered, batch.alive, seconds, steady, batch.first))
        batch.stage, batch.began, batch.step, batch.steps = self._next[stage], 0.0, 0, 0

    def written(self, attempt: str, records: Sequence[Record]) -> None:
        """Note that the rows of a batch are written."""
        self._batches.pop((attempt, records[0].image_id), None)

    def drop(self, attempt: str) -> None:
        """Forget the batches of an attempt that has ended."""
        for key in [key for key in list(self._batches) if key[0] == attempt]:
            self._batches.pop(key, None)

    def flying(self) -> list[Flight]:
        """Return the batches in flight."""
        now = time.monotonic()
        return [
            Flight(
                shard=batch.shard,
                size=batch.size,
                alive=batch.alive,
                stage=batch.stage,
                seconds=now - batch.began if batch.began else 0.0,
                step=batch.step,
                steps=batch.steps,
                pace=batch.pace,
                first=batch.first,
            )
            for batch in list(self._batches.values())
        ]

    def passed(self) -> Iterator[Passage]:
        """Yield what has passed a stage since the last call. Two threads may call it."""
        with suppress(IndexError):
            while True:
                yield self._passed.popleft()
