"""The processing of shards: read files, run the stages, write the tables. Independent of Ray.

While the stages compute a batch, a reader thread decodes and aligns the next one, and a writer
thread encodes the previous one, also of another shard (`line.py`). Batches are formed and written
in plan order.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from dhr_batch.pipeline import crash
from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import code
from dhr_batch.pipeline.planning.costs import ON_HOST
from dhr_batch.pipeline.planning.earlier_run import Reader
from dhr_batch.pipeline.planning.estimate import GeneratorFacts
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.names import staging
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.worker import batches
from dhr_batch.pipeline.worker.attempt import Attempt
from dhr_batch.pipeline.worker.flights import Flights
from dhr_batch.pipeline.worker.line import Job, Line, Part, Writing
from dhr_batch.pipeline.worker.loading import load
from dhr_batch.pipeline.worker.messages import Event, Lost, Report, WorkerFacts
from dhr_batch.pipeline.worker.reading import read_record
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.waits import Waits
from dhr_batch.stages import faces, registry
from dhr_batch.stages.base import Stage
from dhr_batch.stages.device import stream
from dhr_batch.stages.options.align import MAX_MEGAPIXELS
from dhr_batch.stages.record import Record


class Worker:
    """Builds the stages once and then processes shards. A process has one worker."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._out = connect(settings.out)
        begins = settings.config.first_stage == registry.STAGES[0]
        self._stored = None if begins else Reader(settings.config)
        self._events: deque[Event] = deque()
        self._busy: dict[str, tuple[float, int, int]] = {}
        self._waits = Waits(settings.config.image_timeout)
        self._flights = Flights(settings.config.stages)
        self._line = Line(self._align, self._parts, self._written)
        self._device = threading.Lock()
        self._used: set[str] = set()
        self._doing: dict[str, str] = {}

    def setup(self) -> WorkerFacts:
        """Load all networks and return facts about the worker.

        Exceptions of the stages, for example for a missing model, are passed on.

        Raises:
            CommandError: If the code differs from that of the plan, or a GPU is missing.
        """
        config = self.settings.config
        if self.settings.code:
            code.check(config, self.settings.code)
        loaded = load(
            config,
            self.settings.device,
            self.settings.aligned,
            self._model,
            progress=self._flights.step,
            metadata=self.settings.metadata,
        )
        self.stages, self.info = loaded.stages, loaded.info
        self._batch = config.batch_size or self._fitting_batch(loaded.generator)
        if self.settings.device == "cuda":
            import torch

            # The networks are used on other streams than the one on which they were copied.
            torch.cuda.synchronize()
        return WorkerFacts(loaded.device, self._batch, GeneratorFacts.of(loaded.generator))

    def _fitting_batch(self, generator: Any) -> int:
        # torch does not tell the peak memory of Apple GPUs.
        if self.settings.device in ("cpu", "mps"):
            return batches.ON_CPU
        # The sample is aligned already.
        stages = [stage for stage in self.stages if stage.family != "align"]
        beside = ON_HOST if self.settings.divided else ()
        workers = self.settings.config.workers_per_gpu
        return batches.measured(stages, beside, generator, workers, self.settings.device)

    def _model(self, name: str) -> Path:
        self._used.add(name)
        return catalogue.path(name)

    def events(self) -> Report:
        """Report what has happened since the last call."""
        now = time.monotonic()
        paces = [
            ((now - since) / count, shard) for since, count, shard in list(self._busy.values())
        ]
        pace, slow = max(paces, default=(0.0, -1))
        events, stuck = list(self._take_events()), self._waits.stuck(now)
        flights = self._flights.flying()
        events += [
            Event(f"{self._doing[own.stage]}, step {own.step} of {own.steps}", shard=own.shard)
            for own in flights
            if own.step and own.stage in self._doing
        ]
        return Report(
            events,
            pace,
            stuck,
            slow=slow,
            read=self._line.read,
            flights=flights,
            passed=list(self._flights.passed()),
        )

    def _take_events(self) -> Iterator[Event]:
        # Two threads remove events: the one that reports progress and the one that ends a shard.
        with suppress(IndexError):
            while True:
                yield self._events.popleft()

    def run_shard(self, shard: Shard, attempt: str) -> Manifest:
        """Run all stages on a shard and stage its tables.

        Args:
            shard: The shard. Batches are formed in plan order, so that they are the same in every
                attempt.
            attempt: The name under which the tables are staged.

        Returns:
            The receipt: the files with their rows, bytes and sha256, and the counts of images.

        Raises:
            StorageError: If the files cannot be written to the place of the run.
        """
        job = self._take(shard, attempt)
        self._line.compute()
        receipt = self._line.finish(job)
        assert receipt is not None
        return receipt

    def _take(self, shard: Shard, attempt: str) -> Job:
        job = Job(shard, attempt)
        job.ended.add_done_callback(lambda _: self._flights.drop(attempt))
        self._line.add(job, self._batch)
        return job

    def isolate(self, shard: Shard, attempt: str, lost: Lost) -> None:
        """Begin a shard that is processed image by image, with `next_image`.

        Args:
            shard: The shard.
            attempt: The name under which the tables are staged.
            lost: The images that have crashed workers. They are quarantined and not read again.
        """
        self._images = self._one_by_one(shard, attempt, lost)

    def next_image(self) -> Manifest | None:
        """Process the next image, so that the driver knows at which image the process crashes.

        Returns:
            None after each image, and the receipt after one more call. That call closes the tables,
            so that no image is blamed for a crash in it.
        """
        return next(self._images)

    def _one_by_one(self, shard: Shard, attempt: str, lost: Lost) -> Iterator[Manifest | None]:
        job = Job(shard, attempt)
        with closing(self._written(job)) as writing:
            next(writing)
            for position, item in enumerate(shard.items):
                if item.image_id in lost:
                    record = Record(item.image_id, item.image_id, self.settings.split)
                    writing.send([record.failed("worker", *lost[item.image_id])])
                else:
                    stages = self.stages[self._ahead :]
                    for record in self._align(job, [item]):
                        writing.send(self._computed(stages, job, position, [record]))
                yield None
            try:
                writing.send(None)
            except StopIteration as end:
                yield end.value

    def _written(self, job: Job) -> Writing:
        with ExitStack() as stack:
            stack.callback(self._flights.drop, job.attempt)
            with self._writing():
                folder = stack.enter_context(self._out.stage(staging(job.attempt)))
                tables = Attempt(job.shard, folder, self.info, self._events.append, job.started)
            while (records := (yield)) is not None:
                with self._writing():
                    tables.add(records)
                self._flights.written(job.attempt, records)
            seconds = {stage: round(value, 3) for stage, value in job.seconds.items()}
            with self._writing():
                receipt = tables.receipt(job.attempt, seconds, sorted(self._used))
                stack.close()
        crash.at("before-receipt")
        return receipt

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if isinstance(self._out, LocalStorage):
            with self._waits.writing(self._out.place):
                yield
        else:
            yield

    def _align(self, job: Job, items: Sequence[Item]) -> Iterable[Record]:
        every = self.settings.config.align.get("face") == "all" and not self.settings.aligned
        if self._ahead and every:
            return self._each_face(job, items)
        return self._aligned(job, [self._read(item) for item in items])

    def _each_face(self, job: Job, items: Sequence[Item]) -> Iterator[Record]:
        # One photograph and one face at a time, as a photograph may have any number of faces.
        for item in items:
            record = self._read(item)
            first, *_ = self._aligned(job, [record])
            yield first
            for face in faces.further(record, first):
                yield from self._aligned(job, [face])

    def _aligned(self, job: Job, records: list[Record]) -> list[Record]:
        with self._timed("reader", job, len(records)), stream(self.settings.device, "reader"):
            for stage in self.stages[: self._ahead]:
                records = self._clocked(job, stage, records)
        # The encoded file is no longer needed, and large photographs take much memory.
        return [replace(record, data=None) for record in records]

    def _read(self, item: Item) -> Record:
        with self._waits.reading(item.location):
            truth = self.settings.truths.get(item.image_id)
            most = float(self.settings.config.align.get("max_megapixels", MAX_MEGAPIXELS))
            return read_record(item, self.settings.split, self._stored, truth, most)

    @property
    def _ahead(self) -> int:
        """The number of stages that the reader thread runs: `align`, if the run begins with it."""
        return 1 if self._stored is None else 0

    def _parts(self) -> list[Part]:
        """Divide the computation, so that the host and the device work on different batches."""
        stages = self.stages[self._ahead :]
        if not self.settings.divided:
            return [partial(self._computed, stages)]
        groups = groupby(stages, lambda stage: stage.family if stage.family in ON_HOST else "")
        parts = [(self._beside if host else self._on_device, list(own)) for host, own in groups]
        return [partial(compute, own) for compute, own in parts]

    def _computed(
        self, stages: Sequence[Stage], job: Job, first: int, records: list[Record]
    ) -> list[Record]:
        # A face that ends its photograph is followed by another photograph.
        last, shard = first + 1 + sum(r.ends_photograph for r in records[:-1]), job.shard
        count = f"{first + 1}-{last}" if last > first + 1 else f"{last}"
        with self._timed(stages[0].family, job, len(records)):
            for stage in stages:
                what = f"shard {shard.index}: {stage.family} {count} of {len(shard.items)}"
                self._doing[stage.family] = what
                self._events.append(Event(what, shard=shard.index))
                records = self._clocked(job, stage, records)
        return records

    def _beside(
        self, stages: Sequence[Stage], job: Job, first: int, records: list[Record]
    ) -> list[Record]:
        with stream(self.settings.device, stages[0].family):
            return self._computed(stages, job, first, records)

    def _on_device(
        self, stages: Sequence[Stage], job: Job, first: int, records: list[Record]
    ) -> list[Record]:
        # The wait for another batch is not held against the images of this one.
        with self._device:
            return self._computed(stages, job, first, records)

    def _clocked(self, job: Job, stage: Stage, records: list[Record]) -> list[Record]:
        began = time.monotonic()
        self._flights.begin(job.attempt, job.shard.index, stage.family, records)
        records = self._run(stage, records)
        self._flights.end(stage.family, records)
        job.seconds[stage.family] += time.monotonic() - began
        return records

    def _run(self, stage: Stage, records: list[Record]) -> list[Record]:
        return stage.run(records)

    @contextmanager
    def _timed(self, thread: str, job: Job, images: int) -> Iterator[None]:
        self._busy[thread] = (time.monotonic(), images, job.shard.index)
        try:
            yield
        finally:
            del self._busy[thread]
