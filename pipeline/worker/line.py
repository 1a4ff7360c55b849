"""The shards that a worker has in hand: one is read, one computed and one written at a time.

The three steps have a thread each and keep the order of the shards. The reader goes on with the
next shard while one is computed, and the writer ends the one before, so a device does not wait
between shards. At most four batches are in memory, whatever the sizes of shards and batches: one
that is read or waits to be computed, one that is computed, one that waits to be written, and one
that is written. The computation may be divided into parts with a thread each, which adds a batch
per further part, and one that waits between all but the last two. Without these, a device would
wait as soon as the host is late with a batch. The last part gets the edited pictures, which take
most of the memory.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from itertools import islice
from queue import SimpleQueue
from typing import NamedTuple

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.threads import Behind, ahead
from dhr_batch.stages import failures
from dhr_batch.stages.record import Record

# Writes the records that are sent to it. After None, it closes the tables and returns the receipt.
Writing = Generator[None, list[Record] | None, Manifest]

# Computes a batch that begins at a position in its shard.
Part = Callable[["Job", int, list[Record]], list[Record]]


class Job:
    """A shard in hand.

    Attributes:
        shard: The shard.
        attempt: The name under which its tables are staged.
        started: When its computation began, on the monotonic clock.
        seconds: The seconds that each stage has taken.
        ended: The receipt, None if the shard was given back, or the error of the attempt.
    """

    def __init__(self, shard: Shard, attempt: str) -> None:
        self.shard, self.attempt = shard, attempt
        self.started = time.monotonic()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.ended: Future[Manifest | None] = Future()
        self._error: BaseException | None = None
        self._begun = self._given_back = False
        self._writing: Writing | None = None
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        """Whether what is left of the shard is skipped."""
        return self._given_back or self._error is not None

    def fail(self, error: BaseException) -> None:
        """Note why the attempt fails. Only the first reason counts."""
        self._error = self._error or error

    def begin(self, since: float) -> None:
        """Note that the computation begins, and since when it could have."""
        with self._lock:
            if not self._begun and not self._given_back:
                self._begun, self.started = True, since

    def give_back(self) -> None:
        """Skip the shard, unless its computation has begun."""
        with self._lock:
            self._given_back = not self._begun

    def write(self, begin: Callable[[Job], Writing], records: list[Record], last: bool) -> None:
        """Write a batch, or delete what was written if the attempt has failed."""
        if not self.over:
            try:
                if self._writing is None:
                    self._writing = begin(self)
                    next(self._writing)
                self._writing.send(records)
                if last:
                    self._writing.send(None)
            except StopIteration as end:
                self.ended.set_result(end.value)
                return
            except BaseException as error:
                self.fail(error)
        if last:
            if self._writing is not None:
                with suppress(OSError):
                    self._writing.close()
            if self._error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(self._error)


class _Step(NamedTuple):
    """A batch on its way: its shard, which image of it comes first, and whether nothing follows."""

    job: Job
    first: int
    records: list[Record]
    last: bool


class Line:
    """Passes shards through the three steps. Its threads end when no shard is in hand.

    Attributes:
        read: The number of the shard that was read to its end last; -1 before the first one.

    Args:
        read: Makes the records of some images, in their order. An image may have several, which are
            then cut into batches; they are made when they are asked for.
        parts: Returns the parts of the computation of a batch, in order.
        write: Begins to write the tables of a shard.
    """

    def __init__(
        self,
        read: Callable[[Job, Sequence[Item]], Iterable[Record]],
        parts: Callable[[], Sequence[Part]],
        write: Callable[[Job], Writing],
    ) -> None:
        self._read_images, self._parts, self._write = read, parts, write
        self._lock = threading.Lock()
        self._hand: list[Job] = []
        self._threads = ExitStack()
        # Once the process cannot be used any more, nothing else is computed in it.
        self._poison: failures.Poisoned | None = None
        self.read = -1

    def add(self, job: Job, batch_size: int) -> None:
        """Take a shard. A call of `compute` and one of `finish` must follow."""
        with self._lock:
            if not self._hand:
                self._start()
            if self.read == job.shard.index:
                self.read = -1  # It is tried again.
            self._hand.append(job)
            self._jobs.put((job, batch_size))

    def compute(self) -> None:
        """Compute the next shard, with the last part of the computation in this thread."""
        for step in self._computed:
            self._behind.put(step)
            if step.last:
                return

    def finish(self, job: Job) -> Manifest | None:
        """Wait for the end of a shard and return its receipt; None if it was given back.

        Raises:
            BaseException: The reason why the attempt failed.
        """
        try:
            return job.ended.result()
        finally:
            with self._lock:
                self._hand.remove(job)
                if not self._hand:
                    self._threads.close()

    def give_back(self) -> None:
        """Give back the shards whose computation has not begun."""
        with self._lock:
            for job in self._hand:
                job.give_back()

    def _start(self) -> None:
        self._jobs: SimpleQueue[tuple[Job, int] | None] = SimpleQueue()
        self._behind = self._threads.enter_context(Behind(self._written))
        steps = self._read(self._jobs)
        parts = self._parts()
        for number, part in enumerate(parts):
            depth = 2 if 0 < number < len(parts) - 1 else 1
            before = ahead(steps, depth, f"part {number}" if number else "reader")
            self._threads.enter_context(closing(before))
            steps = self._compute(before, part)
        self._computed = steps
        self._threads.callback(self._jobs.put, None)

    def _compute(self, steps: Iterator[_Step], part: Part) -> Iterator[_Step]:
        since = time.monotonic()
        for job, first, records, last in steps:
            try:
                if self._poison is not None:
                    raise self._poison
                job.begin(since)
                if not job.over:
                    records = part(job, first, records)
            except BaseException as error:
                job.fail(error)
                if isinstance(error, failures.Poisoned):
                    self._poison = error
            yield _Step(job, first, records, last)
            if last:
                since = time.monotonic()

    def _read(self, jobs: SimpleQueue[tuple[Job, int] | None]) -> Iterator[_Step]:
        while (taken := jobs.get()) is not None:
            job, size = taken
            items, first, end, last = job.shard.items, 0, 0, False
            records: Iterator[Record] = iter(())
            while not last:
                batch: list[Record] = []
                try:
                    if not job.over:
                        if first == end:
                            end = min(first + size, len(items))
                            records = iter(self._read_images(job, items[first:end]))
                        batch = list(islice(records, size))
                except BaseException as error:
                    job.fail(error)
                following = first + sum(record.ends_photograph for record in batch)
                if following == end:
                    records = iter(())  # An iterator of a list keeps the whole list.
                last = following >= len(items) or job.over or not batch
                if last:
                    self.read = job.shard.index
                yield _Step(job, first, batch, last)
                first = following

    def _written(self, step: _Step) -> None:
        step.job.write(self._write, step.records, step.last)
