"""The loop that hands shards to Ray actors and commits what comes back.

`pipeline/engine/blame.py` decides which image is blamed for a lost worker; a machine that goes
away blames none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from dhr_batch.pipeline.engine import members
from dhr_batch.pipeline.engine.blame import ATTEMPTS, Blame, Death, Place
from dhr_batch.pipeline.engine.members import Member
from dhr_batch.pipeline.engine.progress import Progress
from dhr_batch.pipeline.engine.status import StatusWriter
from dhr_batch.pipeline.engine.tasks import Queue, Task, describe
from dhr_batch.pipeline.engine.worker import Settings
from dhr_batch.pipeline.errors import CommandError, StorageError
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.stopping import Interrupted, Stopper
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.units import duration
from dhr_batch.stages import failures

# Workers that may end one after the other, in the whole run, without any image finished between.
DEATHS_IN_A_ROW = 20
_WAKE_SECONDS = 0.25
_WAITING_SECONDS = 30.0
_GOES_ON = "finished shards are kept; the same command goes on from here"


class RunFailed(CommandError):
    """A run cannot be finished now; what is committed stays. Exit code 1."""


class Driver:
    """Assigns shards, watches workers, replaces dead ones, commits receipts.

    on_ready: called with the facts of the first worker that is set up, before any shard starts.
    stopper: told by whoever listens to signals.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: Settings,
        progress: Progress,
        workers: int,
        on_ready: Callable[[dict[str, Any]], None],
        status: StatusWriter,
        stopper: Stopper,
    ) -> None:
        self.run, self.settings, self.progress, self.workers = run, settings, progress, workers
        self.on_ready: Callable[[dict[str, Any]], None] | None = on_ready
        self.status = status
        self.stopper = stopper
        self._members: dict[int, Member] = {}
        self._tasks: dict[Any, Task] = {}
        self._idle: list[int] = []
        self._blame = Blame()
        self._failed_starts: dict[int, int] = {}
        self._deaths_in_a_row = 0
        self._polled = 0.0
        self._queue = Queue((), self._blame)
        self._waiting_since = self._spoken = time.monotonic()

    def process(self, shards: Iterable[Shard]) -> bool:
        """Run shards until all are committed; False where the user stopped before.

        Raises RunFailed, Interrupted, and what `on_ready` raises.
        """
        self._queue = Queue(shards, self._blame)
        try:
            for number in range(self.workers):
                self._start(number)
            self._loop()
        finally:
            # In a folder they are where they belong.
            away = not isinstance(self.run.storage, LocalStorage) and not self.stopper.immediate
            members.end(self._members.values(), closing=away)
            self._members.clear()
        self.status.update(self._workers, now=True)
        return not self._queue

    def _loop(self) -> None:
        while self._busy() or (self._queue and not self.stopper.requested):
            self.stopper.announce(self.progress.say)
            if self.stopper.immediate:
                raise Interrupted
            self.run.check()
            ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=_WAKE_SECONDS)
            for future in ready:
                self._finished(future, self._tasks.pop(future))
            if time.monotonic() - self._polled >= members.poll_seconds(len(self._members)):
                self._polled = time.monotonic()
                self._poll()
                self._check_waiting()
            self._assign()
            self.progress.update()
            self.status.update(self._workers)

    def _busy(self) -> bool:
        return any(task.shard is not None for task in self._tasks.values())

    def _workers(self) -> list[dict[str, Any]]:
        return [member.to_json(number) for number, member in sorted(self._members.items())]

    def _start(self, number: int) -> None:
        member = self._members[number] = members.start(self.settings, number)
        self._tasks[member.handle.join.remote()] = Task(number, "join")
        self._say(number, member.what)

    def _say(self, number: int, what: str) -> None:
        self._members[number].what = self.progress.state.workers[number] = what

    def _assign(self) -> None:
        if not self._idle or self.stopper.requested or not self._queue:
            return
        working = {m.place for m in self._members.values() if m.ready and m.place}
        for number in self._idle[::-1]:
            if self.stopper.requested or not self._queue:
                return
            shard = self._queue.take(self._members[number].place, working)
            if shard is not None:
                self._idle.remove(number)
                history = self._blame.history(shard.index)
                attempt = self.run.new_attempt(shard.index, len(history.reasons) + 1)
                self._members[number].begin(shard.index)
                isolated = -1 if history.isolate else None
                self._give(Task(number, "shard", shard, attempt, isolated))

    def _give(self, task: Task) -> None:
        assert task.shard is not None
        handle = self._members[task.worker].handle
        if task.position is None:
            future = handle.run_shard.remote(task.shard, task.attempt)
        elif task.position < 0:
            lost = self._blame.history(task.shard.index).lost
            future = handle.isolate.remote(task.shard, task.attempt, lost)
        else:
            future = handle.next_image.remote()
        self._tasks[future] = task

    def _finished(self, future: Any, task: Task) -> None:
        try:
            result = members.answer(future)
        except RayTaskError as error:
            self._raised(task, error)
        except RayError as error:
            self._lost(task, members.short(error), innocent=members.lost_node(error))
        else:
            if task.what == "join":
                self._joined(task.worker, result)
            elif task.shard is None:
                self._set_up(task.worker, result)
            else:
                self._worked(task, task.shard, result)

    def _joined(self, number: int, where: dict[str, Any]) -> None:
        member = self._members[number]
        member.where = where
        if member.place in self._blame.broken:
            self._park(number, member)
        else:
            self._tasks[member.handle.setup.remote()] = Task(number, "setup")
            self._say(number, "loads networks")

    def _park(self, number: int, member: Member) -> None:
        """Let a worker hold a GPU that is out of use, or Ray would give it to the next one."""
        member.parked = True
        self._say(number, f"does nothing: {member.place} is out of use")
        if len(self._members) < members.slots(self.settings):
            self._start(max(self._members) + 1)
        elif all(other.parked for other in self._members.values()):
            names = ", ".join(sorted(map(str, self._blame.broken)))
            raise RunFailed("no GPU is left", f"{names} ended all workers", _GOES_ON)

    def _set_up(self, number: int, facts: dict[str, Any]) -> None:
        if self.on_ready is not None:
            self.on_ready(facts)
            self.on_ready = None
            self.progress.state.started = time.monotonic()
        self._failed_starts.pop(number, None)
        self._members[number].ready = True
        self._members[number].where |= {k: facts[k] for k in ("device", "batch_size")}
        self._say(number, "ready")
        self._idle.append(number)

    def _worked(self, task: Task, shard: Shard, result: dict[str, Any]) -> None:
        member = self._members[task.worker]
        try:
            members.listen(member, task.worker, self.progress, wait=True)
        except GetTimeoutError as error:
            return self._lost(task, members.short(error), innocent=True)
        members.hear(member, task.worker, result, self.progress)
        self._note_progress(member)
        receipt = result["receipt"]
        if receipt is None:
            assert task.position is not None
            after = Task(task.worker, "shard", shard, task.attempt, task.position + 1)
            self._give(after)
            return None
        history = self._blame.finished(shard.index)
        receipt["attempts"] = len(history.reasons) + 1
        receipt["failed_attempts"] = history.reasons
        member.begin(None)
        self._idle.append(task.worker)
        # The worker goes on while this one is committed.
        self._assign()
        try:
            self.run.commit(shard.index, receipt, len(shard.items))
        except ValueError as error:
            raise RunFailed(str(error)) from error
        self.progress.state.shards_done += 1
        self.status.shard_done(receipt)
        return None

    def _note_progress(self, member: Member) -> None:
        if member.has_progressed():
            self._deaths_in_a_row = 0
            self._blame.worked(member.place)

    def _raised(self, task: Task, error: RayTaskError) -> None:
        """A worker reports an error that is not about one image."""
        reason, cause = members.short(error), error.cause
        if isinstance(cause, Exception) and failures.kind_of(cause) == "poisoned":
            self._lost(task, reason)
        elif task.shard is None:
            self._no_start(task.worker, reason)
        elif isinstance(cause, StorageError):
            raise RunFailed(reason, way_out=_GOES_ON) from error
        elif isinstance(cause, OSError):
            raise RunFailed("the results cannot be written", reason, _GOES_ON) from error
        else:
            self._again(task, task.shard, reason)
            self._count_error(task.shard, reason)
            self._idle.append(task.worker)

    def _count_error(self, shard: Shard, reason: str) -> None:
        """A shard failed, and none of its images is to blame: at the second time the run ends."""
        history = self._blame.history(shard.index)
        history.errors += 1
        if history.errors >= ATTEMPTS:
            raise RunFailed(describe(shard), f"failed {ATTEMPTS} times: {reason}", _GOES_ON)

    def _lost(
        self, task: Task, reason: str, error_class: str = "crash", innocent: bool = False
    ) -> None:
        """The process of a worker is gone, or is of no more use: take another one.

        innocent: its machine went away, so that no image is to blame.
        """
        number, shard = task.worker, task.shard
        place = self._members[number].place
        self._end(number)
        if shard is None:
            if not innocent and self._failed_start(number, place):
                return self._no_start(number, f"it ends while it loads the networks: {reason}")
        else:
            self._again(task, shard, reason)
            if not innocent:
                image = task.image
                image_id = image.image_id if image else ""
                self._blame.died(shard.index, Death(place, error_class, reason, image_id))
                if task.position == len(shard.items):
                    # Its images are finished each time, so that nothing else would end this.
                    self._count_error(shard, reason)
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= max(DEATHS_IN_A_ROW, 3 * self.workers):
            raise RunFailed(
                f"{self._deaths_in_a_row} workers ended one after the other and no image was "
                "finished between",
                f"the last one: {reason}",
                _GOES_ON,
            )
        if place and self._blame.is_broken(place):
            self._take_out(place, number, reason)
        self.progress.say(f"worker {number} is lost ({reason}); starting another one")
        self._start(number)
        return None

    def _end(self, number: int) -> None:
        """End a worker's process and forget what was expected of it."""
        self._tasks = {f: t for f, t in self._tasks.items() if t.worker != number}
        self._idle = [idle for idle in self._idle if idle != number]
        ray.kill(self._members[number].handle)

    def _failed_start(self, number: int, place: Place | None) -> bool:
        """Whether a worker ended too often before it was ready, and no GPU can be to blame."""
        if place:
            self._blame.failed_start(place)
            return False
        self._failed_starts[number] = self._failed_starts.get(number, 0) + 1
        return self._failed_starts[number] >= ATTEMPTS

    def _take_out(self, place: Place, last: int, reason: str) -> None:
        """Use a GPU no longer; what workers besides the `last` have in hand is done elsewhere."""
        self._blame.take_out(place)
        self.progress.say(
            f"{place} is taken out of use: workers ended there one after the other and finished no "
            f"image; the last one: {reason}. No image is held to blame"
        )
        for number in [n for n, m in self._members.items() if m.place == place and n != last]:
            for task in [t for t in self._tasks.values() if t.worker == number and t.shard]:
                assert task.shard is not None
                self._again(task, task.shard, f"{place} was taken out of use")
            self._end(number)
            self._start(number)

    def _no_start(self, number: int, reason: str) -> None:
        """A worker that cannot start is given up, and with the last one the run."""
        self._end(number)
        del self._members[number]
        self.progress.state.workers.pop(number, None)
        left = sum(not member.parked for member in self._members.values())
        if not left:
            raise RunFailed(f"worker {number} cannot start", reason)
        self.progress.say(f"worker {number} cannot start: {reason}; going on with {left}")

    def _again(self, task: Task, shard: Shard, reason: str) -> None:
        """Take back what an attempt reported, and queue its shard."""
        self.run.discard(task.attempt)
        members.take_back(self._members[task.worker], self.progress)
        self._queue.give_back(shard)
        self._blame.history(shard.index).reasons.append(reason)

    def _poll(self) -> None:
        config = self.settings.config
        for future, task in list(self._tasks.items()):
            if task.shard is None or future not in self._tasks:
                continue
            member = self._members[task.worker]
            try:
                members.listen(member, task.worker, self.progress)
            except GetTimeoutError as error:
                self._lost(task, members.short(error), innocent=True)
                continue
            self._note_progress(member)
            if member.stuck:
                raise RunFailed(member.stuck, way_out=_GOES_ON)
            limit = config.image_timeout
            images = 1 if task.position is not None else member.where["batch_size"]
            if limit and member.overdue(limit, images):
                self._lost(task, f"not finished within image_timeout={limit:g} s", "timeout")

    def _check_waiting(self) -> None:
        """Say which workers wait for room; give up where none finds any for `wait_timeout`."""
        now, there = time.monotonic(), sum(bool(m.where) for m in self._members.values())
        waiting = len(self._members) - there
        if any(member.ready for member in self._members.values()):
            self._waiting_since = now
        what = "a free GPU" if self.settings.config.gpus else "free CPU cores"
        limit = self.settings.config.wait_timeout
        if now - self._waiting_since > limit:
            missed = "loaded its networks" if there else f"found {what}"
            raise RunFailed(
                f"no worker {missed} within wait_timeout={duration(limit)}",
                members.room(),
                f"wait for other work to end, or ask for less (--gpus, threads). {_GOES_ON}",
            )
        if waiting and now - self._spoken > _WAITING_SECONDS:
            self._spoken = now
            self.progress.say(
                f"{waiting} of {len(self._members)} workers wait for {what}: {members.room()}"
            )
