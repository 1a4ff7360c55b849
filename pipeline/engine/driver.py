"""The loop that assigns shards to Ray actors and commits their results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from dhr_batch.pipeline.engine import members
from dhr_batch.pipeline.engine.blame import Blame
from dhr_batch.pipeline.engine.crew import Crew, RoomWatch
from dhr_batch.pipeline.engine.losses import Losses
from dhr_batch.pipeline.engine.progress import Progress
from dhr_batch.pipeline.engine.status import StatusWriter
from dhr_batch.pipeline.engine.tasks import (
    Join,
    OneImage,
    OpenShard,
    Queue,
    Setup,
    ShardTask,
    Task,
    WholeShard,
    following,
)
from dhr_batch.pipeline.errors import RunFailed
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.records.manifests import Manifest, Where
from dhr_batch.pipeline.stopping import Interrupted, Stopper
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.worker.messages import Report, WorkerFacts
from dhr_batch.pipeline.worker.settings import Settings

_WAKE_SECONDS = 0.25


class Driver:
    """Assigns shards to workers, watches them and commits their receipts.

    Args:
        run: The folder of the run, whose lease this process holds.
        settings: The settings of all workers.
        todo: The shards to process.
        progress: The progress display.
        workers: The number of workers.
        on_ready: Called once, with the facts of the first worker that has loaded its networks,
            before any shard starts.
        status: The writer of the status file.
        stopper: Whether the user has asked to stop.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        todo: Iterable[Shard],
        progress: Progress,
        workers: int,
        on_ready: Callable[[WorkerFacts], None],
        status: StatusWriter,
        stopper: Stopper,
    ) -> None:
        self.run, self.settings, self.progress, self.workers = run, settings, progress, workers
        self.on_ready: Callable[[WorkerFacts], None] | None = on_ready
        self.status = status
        self.stopper = stopper
        self.crew = Crew(settings, progress)
        self._blame = Blame()
        self._queue = Queue(todo, self._blame)
        self._losses = Losses(run, self.crew, self._queue, self._blame, progress, workers)
        self._room = RoomWatch(self.crew)
        self._polled = 0.0

    def process(self) -> bool:
        """Process the shards. Exceptions of `on_ready` are passed on.

        Returns:
            Whether all shards are committed. If not, the user has asked to stop.

        Raises:
            RunFailed: If the run cannot go on.
            Interrupted: If the user has asked to stop at once.
        """
        try:
            for number in range(self.workers):
                self.crew.start(number)
            self._loop()
        finally:
            # In a local folder, the logs need no upload.
            upload = not isinstance(self.run.storage, LocalStorage) and not self.stopper.immediate
            self.crew.end_all(closing=upload)
        self.status.update(self.crew.status, now=True)
        return not self._queue

    def _loop(self) -> None:
        while self.crew.has_shards() or (self._queue and not self.stopper.requested):
            if self.stopper.announce(self.progress.say):
                self.crew.give_back()
            if self.stopper.immediate:
                raise Interrupted
            self.run.check()
            if answer := self.crew.answered(_WAKE_SECONDS):
                self._finished(*answer)
            if time.monotonic() - self._polled >= members.poll_seconds(len(self.crew.members)):
                self._polled = time.monotonic()
                self._poll()
                self.crew.count_hands()
                self._room.check()
            self._assign()
            self.progress.update()
            self.status.update(self.crew.status)

    def _assign(self) -> None:
        """Give shards to idle workers, then further ones to those that have read all of theirs.

        Enough shards are left for workers that have none. A worker gets one shard per call, so that
        Ray keeps their order.
        """
        if self.stopper.requested or not self._queue:
            return
        hungry = [(n, member) for n, member in self.crew.members.items() if member.hungry]
        if not self.crew.idle and not hungry:
            return
        working = self.crew.places()
        for number in self.crew.idle[::-1]:
            if self.stopper.requested or not self._queue:
                return
            member = self.crew.members[number]
            shard = self._queue.take(member.place, working)
            if shard is not None:
                self.crew.idle.remove(number)
                member.receive(shard.index)
                member.alone = self._blame.history(shard.index).alone
                self.crew.ask(self._task(number, shard))
        for number, member in hungry:
            if self._spare() <= 0:
                return
            if shard := self._queue.take(member.place, working, beside=True):
                member.receive(shard.index)
                self.crew.ask(self._task(number, shard))

    def _spare(self) -> int:
        """Return how many shards are left beside one for each worker that has none."""
        without = sum(m.shard is None and not m.parked for m in self.crew.members.values())
        return self.progress.state.shards - self._queue.taken - without

    def _task(self, number: int, shard: Shard) -> ShardTask:
        history = self._blame.history(shard.index)
        attempt = self.run.new_attempt(shard.index, len(history.reasons) + 1)
        if history.isolate:
            return OpenShard(number, shard, attempt, history.lost)
        return WholeShard(number, shard, attempt)

    def _finished(self, future: Any, task: Task) -> None:
        try:
            result = members.answer(future)
        except RayTaskError as error:
            self._losses.failed(task, error)
        except RayError as error:
            self.crew.tasks[future] = task
            task = self._in_progress(task)
            self._losses.lost(task, members.short(error), innocent=members.lost_node(error))
        else:
            if isinstance(task, Join):
                self._joined(task.worker, result)
            elif isinstance(task, ShardTask):
                self.worked(task, result)
            else:
                self._set_up(task.worker, result)

    def _in_progress(self, task: Task) -> Task:
        """Return the task about the shard in progress of the worker, or else this task."""
        shard = self.crew.members[task.worker].shard
        tasks = self.crew.in_hand().get(task.worker, [])
        return next((other for other in tasks if other.shard.index == shard), task)

    def _joined(self, number: int, where: Where) -> None:
        member = self.crew.members[number]
        member.where = where
        if member.place in self._blame.broken:
            self._losses.park(number)
        else:
            self.crew.ask(Setup(number))
            self.crew.say(number, "loads networks")

    def _set_up(self, number: int, facts: WorkerFacts) -> None:
        if self.on_ready is not None:
            self.on_ready(facts)
            self.on_ready = None
            self.progress.state.begin()
            self.status.begin()
        self._losses.started(number)
        self.crew.members[number].facts = facts
        self.crew.say(number, "ready")
        self.crew.idle.append(number)

    def worked(self, task: ShardTask, result: Report) -> None:
        """Handle the answer of a worker to a task about a shard.

        Raises:
            RunFailed: If a receipt does not match its files.
        """
        member = self.crew.members[task.worker]
        try:
            members.listen(member, task.worker, self.progress, wait=True)
        except GetTimeoutError as error:
            self._losses.lost(task, members.short(error), innocent=True)
            return
        members.hear(member, task.worker, result, self.progress)
        self._losses.note_progress(member)
        if result.receipt is None and isinstance(task, WholeShard):
            self._losses.give_back(task)
            self.crew.release(task)
        elif result.receipt is None:
            assert isinstance(task, OpenShard | OneImage)
            self.crew.ask(following(task))
        else:
            self._commit(task, result.receipt)

    def _commit(self, task: ShardTask, receipt: Manifest) -> None:
        reasons = self._blame.finished(task.shard.index).reasons
        receipt = replace(receipt, attempts=len(reasons) + 1, failed_attempts=reasons)
        self.crew.release(task, finished=True)
        # The worker starts its next shard while this one is committed.
        self._assign()
        try:
            self.run.commit(task.shard.index, receipt, len(task.shard.items))
        except ValueError as error:
            raise RunFailed(str(error)) from error
        self.progress.state.shards_done += 1
        self.status.shard_done(receipt)

    def _poll(self) -> None:
        """Ask the workers for their progress, and replace those that exceed the time limit."""
        limit = self.settings.config.image_timeout
        for number, tasks in self.crew.in_hand().items():
            member = self.crew.members[number]
            # A worker may have been replaced meanwhile, with a GPU that was taken out of use.
            if member.shard != tasks[0].shard.index:
                continue
            try:
                members.listen(member, number, self.progress)
            except GetTimeoutError as error:
                self._losses.lost(tasks[0], members.short(error), innocent=True)
                continue
            self._losses.note_progress(member)
            if member.stuck:
                raise RunFailed(member.stuck, way_out=RunFailed.GOES_ON)
            assert member.facts is not None
            images = member.facts.batch_size if isinstance(tasks[0], WholeShard) else 1
            if limit and member.overdue(limit, images):
                slow = next((task for task in tasks if task.shard.index == member.slow), tasks[0])
                self._losses.lost(slow, f"not finished within image_timeout={limit:g} s", "timeout")
