"""The state of each worker in the driver, and the handling of its reports."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)

from dhr_batch.pipeline.engine.blame import Place
from dhr_batch.pipeline.engine.progress import Progress
from dhr_batch.pipeline.runs.records.manifests import Where
from dhr_batch.pipeline.runs.records.status_file import WorkerStatus
from dhr_batch.pipeline.worker.messages import IN_HAND, Event, Report, WorkerFacts

# Time for an answer, in addition to the time limit of the images.
_GRACE_SECONDS = 5.0
# An answer is a few kilobytes. If it takes longer than this, its node is lost.
_ANSWER_SECONDS = 30.0
# A request costs the driver 0.16 ms: polling a thousand workers four times a second would leave it
# no time to commit. An answer is read at the next poll, so the grace period must allow two polls.
_POLL_SECONDS, _LONGEST_POLL = 0.25, 1.0
_WORKERS_PER_POLL = 100


@dataclass
class Member:
    """One worker.

    Attributes:
        handle: The Ray actor.
        what: What it is doing, as text for the progress display.
        shard: The number of the shard in progress, the first one in hand.
        since: When this shard was assigned or the one before it ended, in Unix seconds.
        later: The numbers of the further shards in hand, in order.
        alone: Whether it is to have no further shard in hand.
        where: Where it runs; None until Ray has started it.
        facts: Its device and networks; None until the networks are loaded.
        parked: Whether it only occupies a GPU that is out of use.
        asked_at: When the pending request was sent, on the monotonic clock.
        pace: Seconds per image of its slowest batch so far.
        slow: The shard of this batch.
        read: The shard that it has read to its end last.
        stuck: The place that does not answer, as a message; "" if there is none.
        pending: The future of the pending request for events.
        done: The number of reported images of the shard in progress.
        failed: The number of these that were quarantined.
        noted: The number of finished images that `has_progressed` has counted.
        errors: The classes of the failures of the shard in progress.
        early: Finished images of further shards, which count once these are in progress.
    """

    handle: Any
    what: str = "waits for resources"
    shard: int | None = None
    since: float = field(default_factory=time.time)
    later: list[int] = field(default_factory=list)
    alone: bool = False
    where: Where | None = None
    facts: WorkerFacts | None = None
    parked: bool = False
    asked_at: float = 0.0
    pace: float = 0.0
    slow: int = -1
    read: int = -1
    stuck: str = ""
    pending: Any = None
    done: int = 0
    failed: int = 0
    noted: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    early: list[Event] = field(default_factory=list)

    @property
    def hungry(self) -> bool:
        """Whether it has read all shards in hand and can take a further one."""
        in_hand = [self.shard, *self.later]
        return self.read == in_hand[-1] and len(in_hand) < IN_HAND and not self.alone

    @property
    def place(self) -> Place | None:
        """Its GPUs; None on a CPU, or while it waits for resources."""
        where = self.where
        return Place(where.node, where.host, tuple(where.gpus)) if where and where.gpus else None

    @property
    def ready(self) -> bool:
        """Whether its networks are loaded."""
        return self.facts is not None

    def begin(self, shard: int | None) -> None:
        """Note the shard in progress and reset the counters."""
        if shard != self.shard:
            self.since = time.time()
        self.shard, self.pace = shard, 0.0
        self.done, self.failed, self.noted, self.errors = 0, 0, 0, Counter()

    def receive(self, shard: int) -> None:
        """Add a shard that was sent to the worker. It is in progress if the worker has no other."""
        if self.read == shard:
            self.read = -1  # It is tried again.
        if self.shard is None:
            self.begin(shard)
        else:
            self.later.append(shard)

    def has_progressed(self) -> bool:
        """Whether an image was finished, and not quarantined, since the last call."""
        before, self.noted = self.noted, max(self.noted, self.done - self.failed)
        return self.noted > before

    def overdue(self, limit: float, images: int) -> bool:
        """Whether an image takes longer than `limit` seconds, or the worker does not answer.

        Args:
            limit: The time limit of an image in seconds.
            images: The number of images in a batch.
        """
        # Measured from the request, not from the last answer: the driver may have been busy.
        silent = time.monotonic() - self.asked_at if self.pending is not None else 0.0
        return self.pace > limit or silent > limit * images + _GRACE_SECONDS

    def status(self, number: int) -> WorkerStatus:
        """Return its entry in `_state/status.json`."""
        where, facts = self.where, self.facts
        return WorkerStatus(
            worker=number,
            what=self.what,
            shard=self.shard,
            since=self.since,
            host=where.host if where else None,
            pid=where.pid if where else None,
            gpus=where.gpus if where else None,
            node=where.node if where else None,
            device=facts.device if facts else None,
            batch_size=facts.batch_size if facts else None,
        )


def poll_seconds(workers: int) -> float:
    """Return the seconds between two polls of all workers."""
    return min(_LONGEST_POLL, _POLL_SECONDS * max(1.0, workers / _WORKERS_PER_POLL))


def listen(member: Member, number: int, progress: Progress, wait: bool = False) -> None:
    """Read the answer to the last request for events, or send a new request.

    A crashed worker is ignored: it is handled with the future of its task.

    Args:
        member: The worker.
        number: The number of the worker.
        progress: The progress display.
        wait: Whether to wait for a pending answer; no new request is sent then.

    Raises:
        GetTimeoutError: If the answer does not arrive.
    """
    if member.pending is None:
        if not wait:
            member.pending, member.asked_at = member.handle.events.remote(), time.monotonic()
        return
    if not wait and not ray.wait([member.pending], timeout=0)[0]:
        return
    future, member.pending = member.pending, None
    try:
        hear(member, number, answer(future), progress)
    except (RayTaskError, GetTimeoutError):
        raise
    except RayError:
        return


def answer(future: Any) -> Any:
    """Return the result of a future.

    Raises:
        RayError: If the worker has failed.
        GetTimeoutError: If the result does not arrive.
    """
    return ray.get(future, timeout=_ANSWER_SECONDS)


def hear(member: Member, number: int, report: Report, progress: Progress) -> None:
    """Add a report of a worker to the counters."""
    member.pace, member.slow, member.stuck = report.pace, report.slow, report.stuck
    member.read = report.read
    progress.state.forecast.hear(number, time.monotonic(), report.flights, report.passed)
    for event in report.events:
        if event.done and event.shard in member.later:
            member.early.append(event)
        else:
            _count(member, number, event, progress)


def _count(member: Member, number: int, event: Event, progress: Progress) -> None:
    member.what = event.what
    member.done += event.done
    member.failed += event.failed
    member.errors.update(event.errors)
    progress.event(number, event)


def release(
    member: Member, number: int, shard: int, progress: Progress, finished: bool = False
) -> None:
    """Remove a shard from those in hand. If it was in progress, the next one is from now on.

    Args:
        member: The worker.
        number: The number of the worker.
        shard: The number of the shard.
        progress: The progress display.
        finished: Whether its images are finished, which matters if it was not in progress yet.
    """
    if shard in member.later:
        member.later.remove(shard)
        for event in member.early:
            if event.shard == shard and finished:
                progress.event(number, event)
        member.early = [event for event in member.early if event.shard != shard]
        return
    member.begin(member.later.pop(0) if member.later else None)
    early, member.early = member.early, []
    for event in early:
        if event.shard == member.shard:
            _count(member, number, event, progress)
        else:
            member.early.append(event)


def take_back(member: Member, progress: Progress) -> None:
    """Subtract the images of the shard in progress, which will be reported again."""
    progress.take_back(member.done, member.failed, member.errors)
    member.begin(member.shard)


def short(error: RayError) -> str:
    """Return the message of an error without Ray's remote traceback and advice."""
    if lost_node(error):
        return "the node of the worker was lost"
    if isinstance(error, RayActorError):
        return "the worker's process died (killed, crashed or out of memory)"
    cause = getattr(error, "cause", None)
    if isinstance(cause, Exception):
        own = type(cause).__module__.startswith("dhr_batch.")
        return str(cause) if own else f"{type(cause).__name__}: {cause}"
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def lost_node(error: RayError) -> bool:
    """Whether the node of a worker was lost, in which case no image is the cause of the error."""
    unreachable = isinstance(error, ActorUnavailableError | GetTimeoutError)
    return unreachable or "node has died" in str(error)
