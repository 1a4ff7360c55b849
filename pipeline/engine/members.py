"""A worker as the driver sees it, and what it reports."""

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
from dhr_batch.pipeline.engine.messages import Report, WorkerFacts
from dhr_batch.pipeline.engine.progress import Progress
from dhr_batch.pipeline.runs.manifests import Where
from dhr_batch.pipeline.runs.status_file import WorkerStatus

# Time to answer a question, on top of what an image may take.
_GRACE_SECONDS = 5.0
# An answer is a few kilobytes: later than this, whoever holds it is gone.
_ANSWER_SECONDS = 30.0
# A question costs the driver 0.16 ms: asking a thousand workers four times a second would keep it
# from committing. The answer is taken in one poll later, so two polls must fit into the grace.
_POLL_SECONDS, _LONGEST_POLL = 0.25, 1.0
_WORKERS_PER_POLL = 100


@dataclass
class Member:
    """One worker. where: known once it runs. facts: known once its networks are loaded.

    asked: when the pending question was put. pace: seconds per image of its slowest batch so far.
    stuck: what it waits for that does not answer, "" mostly. parked: it does nothing but hold a
    GPU that is out of use.
    done, failed, errors: images reported from the shard in hand, which is not committed yet.
    noted: of these, the finished ones that the driver has acted upon.
    """

    handle: Any
    what: str = "waits for resources"
    shard: int | None = None
    since: float = field(default_factory=time.time)
    where: Where | None = None
    facts: WorkerFacts | None = None
    parked: bool = False
    asked: float = 0.0
    pace: float = 0.0
    stuck: str = ""
    pending: Any = None
    done: int = 0
    failed: int = 0
    noted: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def place(self) -> Place | None:
        """Its GPU; None on a CPU, or while it waits for resources."""
        where = self.where
        return Place(where.node, where.host, tuple(where.gpus)) if where and where.gpus else None

    @property
    def ready(self) -> bool:
        """Whether its networks are loaded."""
        return self.facts is not None

    def begin(self, shard: int | None) -> None:
        """Note what is in hand now; whatever was reported before is settled."""
        if shard != self.shard:
            self.since = time.time()
        self.shard, self.pace = shard, 0.0
        self.done, self.failed, self.noted, self.errors = 0, 0, 0, Counter()

    def has_progressed(self) -> bool:
        """Whether an image was finished, and not only failed, since this was last asked."""
        before, self.noted = self.noted, max(self.noted, self.done - self.failed)
        return self.noted > before

    def overdue(self, limit: float, images: int) -> bool:
        """Whether an image takes longer than `limit` seconds, or a batch of `images` no answer."""
        # Not since it last answered: a driver that was busy itself has not asked either.
        silent = time.monotonic() - self.asked if self.pending is not None else 0.0
        return self.pace > limit or silent > limit * images + _GRACE_SECONDS

    def status(self, number: int) -> WorkerStatus:
        """What `_state/status.json` says of it."""
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
    """How often each of so many workers is asked what it does."""
    return min(_LONGEST_POLL, _POLL_SECONDS * max(1.0, workers / _WORKERS_PER_POLL))


def listen(member: Member, number: int, progress: Progress, wait: bool = False) -> None:
    """Take in what a worker has reported, without waiting for it unless told to.

    A dead worker is ignored: the future of its shard tells the same and is acted upon. Raises
    GetTimeoutError where its answer does not come.
    """
    if member.pending is None:
        if not wait:
            member.pending, member.asked = member.handle.events.remote(), time.monotonic()
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
    """What a worker has answered, or is about to. Raises RayError; GetTimeoutError after a time."""
    return ray.get(future, timeout=_ANSWER_SECONDS)


def hear(member: Member, number: int, report: Report, progress: Progress) -> None:
    """Count what a worker reports."""
    member.pace, member.stuck = report.pace, report.stuck
    for event in report.events:
        member.what = event.what
        member.done += event.done
        member.failed += event.failed
        member.errors.update(event.errors)
        progress.event(number, event)


def take_back(member: Member, progress: Progress) -> None:
    """The shard in hand is lost: its images will be reported again."""
    progress.take_back(member.done, member.failed, member.errors)
    member.begin(None)


def short(error: RayError) -> str:
    """The message without Ray's remote traceback and advice."""
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
    """Whether a whole machine went away, which says nothing about what its workers did."""
    away = isinstance(error, ActorUnavailableError | GetTimeoutError)
    return away or "node has died" in str(error)
