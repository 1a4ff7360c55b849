"""The loop that hands shards to Ray actors and commits what comes back."""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from dhr_batch.pipeline import actor
from dhr_batch.pipeline.commit import RunFolder
from dhr_batch.pipeline.plan import Shard
from dhr_batch.pipeline.progress import Progress
from dhr_batch.pipeline.storage import StorageError
from dhr_batch.pipeline.worker import Settings

# A shard that has ended two workers will end a third.
ATTEMPTS = 2
_POLL_SECONDS = 0.25
_WAITING_SECONDS = 30.0


class RunFailed(RuntimeError):
    """A run cannot be finished now; what is committed stays. Exit code 1."""


class Interrupted(Exception):
    """The user asked to stop at once. Exit code 130."""


@dataclass
class Task:
    """What a future stands for: the set-up of a worker (no shard) or an attempt at a shard."""

    worker: int
    shard: Shard | None = None
    attempt: str = ""


class Driver:
    """Assigns shards, watches workers, replaces dead ones, commits receipts.

    on_ready: called with the facts of the first worker that is set up, before any shard starts.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        progress: Progress,
        workers: int,
        on_ready: Callable[[dict[str, Any]], None],
    ) -> None:
        self.run, self.settings, self.progress, self.workers = run, settings, progress, workers
        self.on_ready: Callable[[dict[str, Any]], None] | None = on_ready
        self.stop = 0
        self._handles: dict[int, Any] = {}
        self._tasks: dict[Any, Task] = {}
        self._idle: list[int] = []
        self._events: dict[int, Any] = {}
        self._partial: dict[int, Counter[str]] = {}
        self._failures: Counter[int] = Counter()
        self._deaths_at_start = 0

    def process(self, shards: list[Shard]) -> bool:
        """Run shards until all are committed; False where the user stopped before.

        Raises RunFailed, Interrupted, and what `on_ready` raises.
        """
        self._queue = deque(shards)
        try:
            with self._signals():
                for number in range(self.workers):
                    self._start(number)
                self._loop()
        finally:
            for handle in self._handles.values():
                ray.kill(handle)
        return not self._queue

    def _loop(self) -> None:
        waiting_since = time.monotonic()
        while self._tasks or (self._queue and not self.stop):
            if self.stop > 1:
                raise Interrupted
            self.run.check()
            ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=_POLL_SECONDS)
            for future in ready:
                self._finished(future, self._tasks.pop(future))
            self._poll()
            self._assign()
            self.progress.update()
            if len(self._handles) == self._starting() and not self.stop:
                if time.monotonic() - waiting_since > _WAITING_SECONDS:
                    waiting_since = time.monotonic()
                    what = "free GPUs" if self.settings.gpu else "free CPU cores"
                    self.progress.say(f"workers wait for {what} or load networks")
            else:
                waiting_since = time.monotonic()
            if self.stop and not any(task.shard for task in self._tasks.values()):
                return

    def _starting(self) -> int:
        return sum(task.shard is None for task in self._tasks.values())

    def _start(self, number: int) -> None:
        config = self.settings.config
        share = 1 / config.workers_per_gpu if self.settings.gpu else 0
        handle = actor.remote(share, config.threads).remote(self.settings)
        self._handles[number] = handle
        self._partial[number] = Counter()
        self._tasks[handle.setup.remote()] = Task(number)
        self.progress.state.workers[number] = "loading networks"

    def _assign(self) -> None:
        while self._idle and self._queue and not self.stop:
            number, shard = self._idle.pop(), self._queue.popleft()
            attempt = self.run.new_attempt(shard.index, self._failures[shard.index] + 1)
            future = self._handles[number].run_shard.remote(shard, attempt)
            self._tasks[future] = Task(number, shard, attempt)

    def _finished(self, future: Any, task: Task) -> None:
        try:
            result = ray.get(future)
        except RayActorError as error:
            self._lost(task, error)
        except RayTaskError as error:
            self._raised(task, error)
        else:
            if task.shard is None:
                self._set_up(task.worker, result)
            else:
                self._commit(task, task.shard, result)

    def _set_up(self, number: int, facts: dict[str, Any]) -> None:
        if self.on_ready is not None:
            self.on_ready(facts)
            self.on_ready = None
            self.progress.state.started = time.monotonic()
        self.progress.state.workers[number] = "ready"
        self._idle.append(number)

    def _commit(self, task: Task, shard: Shard, receipt: dict[str, Any]) -> None:
        self._drain(task.worker)
        self._partial[task.worker].clear()
        try:
            self.run.commit(shard.index, receipt, len(shard.items))
        except ValueError as error:
            raise RunFailed(str(error)) from error
        self.progress.state.shards_done += 1
        self._idle.append(task.worker)

    def _lost(self, task: Task, error: RayError) -> None:
        """The process of a worker is gone: take another one."""
        self._events.pop(task.worker, None)
        if task.shard is None:
            self._deaths_at_start += 1
            if self._deaths_at_start >= ATTEMPTS:
                raise RunFailed(f"workers die while they load the networks: {_short(error)}")
        else:
            self._again(task, task.shard, _short(error))
        self.progress.say(f"worker {task.worker} died; starting another one")
        self._start(task.worker)

    def _raised(self, task: Task, error: RayTaskError) -> None:
        """A worker reports an error that is not about one image."""
        if task.shard is None or isinstance(error.cause, StorageError):
            raise RunFailed(_short(error)) from error
        self._again(task, task.shard, _short(error))
        self._idle.append(task.worker)

    def _again(self, task: Task, shard: Shard, reason: str) -> None:
        self.run.discard(task.attempt)
        state, partial = self.progress.state, self._partial[task.worker]
        state.done -= partial["done"]
        state.failed -= partial["failed"]
        partial.clear()
        self._failures[shard.index] += 1
        if self._failures[shard.index] >= ATTEMPTS:
            names = ", ".join(item.image_id for item in shard.items[:3])
            more = ", ..." if len(shard.items) > 3 else ""
            raise RunFailed(
                f"shard {shard.index} ({names}{more}) failed {ATTEMPTS} times: {reason}. "
                "Finished shards are kept; the same command goes on from here"
            )
        self._queue.appendleft(shard)

    def _poll(self) -> None:
        for task in list(self._tasks.values()):
            number = task.worker
            if task.shard is None:
                continue
            if number not in self._events:
                self._events[number] = self._handles[number].events.remote()
            elif ray.wait([self._events[number]], timeout=0)[0]:
                self._take(number)

    def _drain(self, number: int) -> None:
        if number in self._events:
            self._take(number)
        self._events[number] = self._handles[number].events.remote()
        self._take(number)

    def _take(self, number: int) -> None:
        try:
            events = ray.get(self._events.pop(number))
        except RayActorError:
            return  # The future of its shard tells the same and is acted upon.
        for event in events:
            self._partial[number]["done"] += event.get("done", 0)
            self._partial[number]["failed"] += event.get("failed", 0)
            self.progress.event(number, event)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First Ctrl-C: finish the shards in flight. Second one, or SIGTERM: stop now."""

        def handle(number: int, _frame: FrameType | None) -> None:
            self.stop += 2 if number == signal.SIGTERM else 1
            if self.stop == 1:
                self.progress.say("stopping after the shards in flight; Ctrl-C again stops now")

        before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _short(error: RayError) -> str:
    """The message without Ray's remote traceback and advice."""
    if isinstance(error, RayActorError):
        return "the process of its worker died (killed, crashed, or out of memory)"
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        own = type(cause).__module__.startswith("dhr_batch.")
        return str(cause) if own else f"{type(cause).__name__}: {cause}"
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
