"""All workers of a run: their actors, and the tasks that they are working on."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import ray

from dhr_batch.pipeline.engine import actor
from dhr_batch.pipeline.engine.blame import Place
from dhr_batch.pipeline.engine.members import Member, release
from dhr_batch.pipeline.engine.progress import Progress
from dhr_batch.pipeline.engine.tasks import Join, ShardTask, Task
from dhr_batch.pipeline.errors import RunFailed
from dhr_batch.pipeline.runs.records.status_file import WorkerStatus
from dhr_batch.pipeline.units import duration
from dhr_batch.pipeline.worker.settings import Settings

_CLOSING_SECONDS = 10.0
_WAITING_SECONDS = 30.0


class Crew:
    """The workers of a run.

    Attributes:
        settings: The settings of all workers.
        members: The workers by number.
        tasks: The task of each future of Ray.
        idle: The numbers of the workers without a task.
    """

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings, self.progress = settings, progress
        self.members: dict[int, Member] = {}
        self.tasks: dict[Any, Task] = {}
        self.idle: list[int] = []

    @property
    def gpu_share(self) -> float:
        """The number of GPUs of a worker."""
        config = self.settings.config
        return 1 / config.workers_per_gpu if config.gpus else 0.0

    def start(self, number: int) -> None:
        """Create the actor of a worker. Ray starts it as soon as resources are free."""
        remote = actor.remote(self.gpu_share, self.settings.cpus)
        self.members[number] = Member(remote.remote(self.settings, number))
        self.ask(Join(number))
        self.say(number, self.members[number].what)

    def ask(self, task: Task) -> None:
        """Send a task to its worker."""
        self.tasks[task.ask(self.members[task.worker].handle)] = task

    def say(self, number: int, what: str) -> None:
        """Show in the progress display what a worker does."""
        self.members[number].what = self.progress.state.workers[number] = what

    def answered(self, seconds: float) -> tuple[Any, Task] | None:
        """Wait for an answer and return its future and task; None if none comes in this time."""
        ready, _ = ray.wait(list(self.tasks), num_returns=1, timeout=seconds)
        return (ready[0], self.tasks.pop(ready[0])) if ready else None

    def release(self, task: ShardTask, finished: bool = False) -> None:
        """Note that a worker no longer has a shard in hand, and whether it has finished it."""
        member = self.members[task.worker]
        release(member, task.worker, task.shard.index, self.progress, finished)
        if member.shard is None:
            self.idle.append(task.worker)

    def give_back(self) -> None:
        """Ask the workers to give back the shards whose computation has not begun."""
        for member in self.members.values():
            if member.later:
                member.handle.give_back.remote()

    def has_shards(self) -> bool:
        """Whether any worker is processing a shard."""
        return any(isinstance(task, ShardTask) for task in self.tasks.values())

    def in_hand(self) -> dict[int, list[ShardTask]]:
        """Return the tasks about shards by worker, in order."""
        found: defaultdict[int, list[ShardTask]] = defaultdict(list)
        for task in self.tasks.values():
            if isinstance(task, ShardTask):
                found[task.worker].append(task)
        return found

    def count_hands(self) -> None:
        """Tell the forecast how many unfinished images each worker has in hand."""
        in_hand = self.in_hand()
        self.progress.state.forecast.hands = {
            number: sum(len(task.shard.items) for task in in_hand.get(number, ()))
            - member.done
            - sum(event.done for event in member.early)
            for number, member in self.members.items()
            if not member.parked
        }

    def places(self) -> set[Place]:
        """Return the GPUs on which workers are ready."""
        return {m.place for m in self.members.values() if m.ready and m.place}

    def end(self, number: int) -> None:
        """End the process of a worker and drop its tasks."""
        self.tasks = {f: t for f, t in self.tasks.items() if t.worker != number}
        self.idle = [idle for idle in self.idle if idle != number]
        self.progress.state.forecast.forget(number)
        ray.kill(self.members[number].handle)

    def end_all(self, closing: bool) -> None:
        """End the processes of all workers.

        Args:
            closing: Whether running workers may first upload their logs, for a limited time.
        """
        members = self.members.values()
        closed = [member.handle.close.remote() for member in members if member.where and closing]
        if closed:
            ray.wait(closed, num_returns=len(closed), timeout=_CLOSING_SECONDS)
        for member in members:
            ray.kill(member.handle)
        self.members.clear()

    def slots(self) -> int:
        """Return the number of workers that fit on the GPUs of the whole cluster."""
        return int(ray.cluster_resources().get("GPU", 0)) * self.settings.config.workers_per_gpu

    def status(self) -> list[WorkerStatus]:
        """Return the entries of the workers in `_state/status.json`."""
        return [member.status(number) for number, member in sorted(self.members.items())]


class RoomWatch:
    """Reports workers that wait for resources, and ends a run that gets none."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._ready_at = self._reported_at = time.monotonic()

    def check(self) -> None:
        """Check whether workers wait for resources. The driver calls this regularly.

        Raises:
            RunFailed: If no worker has been ready for `wait_timeout`.
        """
        config, members = self._crew.settings.config, self._crew.members.values()
        now, placed = time.monotonic(), sum(bool(member.where) for member in members)
        waiting = len(members) - placed
        if any(member.ready for member in members):
            self._ready_at = now
        if now - self._ready_at > config.wait_timeout:
            missing, room, way_out = self._room()
            missed = "loaded its networks" if placed else f"got {missing}"
            raise RunFailed(
                f"no worker {missed} within wait_timeout={duration(config.wait_timeout)}",
                room,
                f"wait for other work to end, or {way_out}. {RunFailed.GOES_ON}",
            )
        if waiting and now - self._reported_at > _WAITING_SECONDS:
            self._reported_at = now
            missing, room, way_out = self._room()
            self._crew.progress.say(
                f"{waiting} of {len(members)} workers wait for {missing}: {room}; if no other work "
                f"ends, {way_out}"
            )

    def _room(self) -> tuple[str, str, str]:
        """Describe what a worker lacks, what the cluster has, and how to need less."""
        settings = self._crew.settings
        have, free = ray.cluster_resources(), ray.available_resources()
        parts = [f"{free.get(k, 0):g} of {have.get(k, 0):g} {k}s are free" for k in ("GPU", "CPU")]
        cores = f"{settings.cpus} free CPU core{'s' if settings.cpus > 1 else ''}"
        missing, way_out = cores, "use fewer (--set workers=N or threads=N)"
        if settings.config.gpus:
            lacks_gpu = free.get("GPU", 0) < self._crew.gpu_share
            missing = "a free GPU" if lacks_gpu else f"{cores} beside a free GPU"
            way_out = "use fewer (--gpus, --set cpus_per_gpu=N)"
        return missing, ", ".join(parts), way_out
