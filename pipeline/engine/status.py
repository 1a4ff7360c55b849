"""The state of a run for monitoring: `_state/status.json` and Ray's metrics."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable

from ray.util import metrics

from dhr_batch.pipeline.engine.progress import RunCounters
from dhr_batch.pipeline.runs.records import status_file
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.runs.records.status_file import (
    DriverProcess,
    ImageCounts,
    ShardCounts,
    Speed,
    StatusContent,
    WorkerStatus,
)

_WINDOW = 300.0
_MOST_POINTS = 500


class StatusWriter:
    """Writes the state of a run every few seconds.

    Args:
        state: The counters of the run.
        write: A function that stores the content of the file.
        every: Seconds between two writes.
        points: The throughput of earlier starts: pairs of a Unix time and the total number of
            computed images.
    """

    def __init__(
        self,
        state: RunCounters,
        write: Callable[[bytes], None],
        every: float = 2.0,
        points: list[list[float]] | None = None,
    ) -> None:
        self.state, self._write, self._every = state, write, every
        self._points = list(points or [])
        self._earlier = len(self._points)
        self._spacing = every
        self._recent: deque[tuple[float, int]] = deque()
        self._started = time.time()
        self._written = 0.0
        self._done = metrics.Counter("dhr_batch_images_done", "Images in finished shards")
        self._bad = metrics.Counter("dhr_batch_images_quarantined", "Images that failed")
        self._shard = metrics.Gauge("dhr_batch_shard_seconds", "Duration of the last shard")

    def begin(self) -> None:
        """Begin to measure the speed: the first worker is ready."""
        del self._points[self._earlier :]
        self._recent.clear()
        self._sample(time.time())

    def shard_done(self, receipt: Manifest) -> None:
        """Count a committed shard."""
        for counter, count in ((self._done, receipt.ok), (self._bad, receipt.quarantined)):
            # Ray's counters refuse 0.
            if count:
                counter.inc(count)
        self._shard.set(receipt.seconds)

    def update(self, workers: Callable[[], list[WorkerStatus]], now: bool = False) -> None:
        """Write the file if it is due.

        Args:
            workers: A function that returns the state of the workers.
            now: Whether to write the file even if it is not due.
        """
        current = time.time()
        if not now and current - self._written < self._every:
            return
        self._written = current
        self._sample(current, now)
        self._write(status_file.dumps(self._content(current, workers())))

    def _sample(self, now: float, last: bool = False) -> None:
        computed = self.state.done - self.state.failed
        self._recent.append((now, computed))
        while len(self._recent) > 1 and now - self._recent[1][0] >= _WINDOW:
            self._recent.popleft()
        if last or not self._points or now - self._points[-1][0] >= self._spacing:
            before = self.state.before - self.state.before_failed
            self._points.append([round(now, 1), before + computed])
        if len(self._points) > _MOST_POINTS:
            self._points = self._points[::2]
            self._spacing *= 2

    def _content(self, now: float, workers: list[WorkerStatus]) -> StatusContent:
        state, (since, before) = self.state, self._recent[0]
        computed = state.done - state.failed
        recent = (computed - before) / (now - since) if now > since else 0.0
        return StatusContent(
            updated=now,
            started=self._started,
            driver=DriverProcess(os.uname().nodename, os.getpid()),
            images=ImageCounts(state.total, state.done, state.failed, state.before),
            shards=ShardCounts(state.shards, state.shards_done),
            images_per_second=Speed(state.rate, recent),
            seconds_left=state.remaining,
            errors=dict(state.failures),
            workers=workers,
            throughput=self._points,
        )
