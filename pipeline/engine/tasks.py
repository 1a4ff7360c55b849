"""What a worker can be asked for, and the queue of shards that wait for one."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.engine.blame import Blame, Place
from dhr_batch.pipeline.engine.worker import Lost
from dhr_batch.pipeline.planning.plan import Shard


@dataclass(frozen=True)
class Task:
    """One question to a worker. `ask` puts it to the worker's actor and returns Ray's future."""

    worker: int

    def ask(self, handle: Any) -> Any:
        raise NotImplementedError


class Join(Task):
    """Say where you run. Answered once Ray has found room for the worker."""

    def ask(self, handle: Any) -> Any:
        return handle.join.remote()


class Setup(Task):
    """Load the networks."""

    def ask(self, handle: Any) -> Any:
        return handle.setup.remote()


@dataclass(frozen=True)
class ShardTask(Task):
    """Work on a shard. attempt: the name under which its tables are staged."""

    shard: Shard
    attempt: str

    @property
    def image(self) -> Item | None:
        """The only image in work, if it is known."""
        return None


class WholeShard(ShardTask):
    """Finish a shard and return its receipt."""

    def ask(self, handle: Any) -> Any:
        return handle.run_shard.remote(self.shard, self.attempt)


@dataclass(frozen=True)
class OpenShard(ShardTask):
    """Begin a shard whose images are asked for one by one. lost: images to leave alone."""

    lost: Lost

    def ask(self, handle: Any) -> Any:
        return handle.isolate.remote(self.shard, self.attempt, self.lost)


@dataclass(frozen=True)
class OneImage(ShardTask):
    """Finish the image at `position` of an opened shard."""

    position: int

    @property
    def image(self) -> Item:
        return self.shard.items[self.position]

    def ask(self, handle: Any) -> Any:
        return handle.next_image.remote()


class CloseShard(ShardTask):
    """Close the tables of an opened shard and return its receipt: no image is in work."""

    def ask(self, handle: Any) -> Any:
        return handle.next_image.remote()


def following(task: OpenShard | OneImage) -> OneImage | CloseShard:
    """The next question about an opened shard."""
    position = task.position + 1 if isinstance(task, OneImage) else 0
    if position < len(task.shard.items):
        return OneImage(task.worker, task.shard, task.attempt, position)
    return CloseShard(task.worker, task.shard, task.attempt)


class Queue:
    """Shards that wait: those given back first, then `todo`, which is read one shard at a time."""

    def __init__(self, todo: Iterable[Shard], blame: Blame) -> None:
        self._todo, self._blame = iter(todo), blame
        self._waiting: deque[Shard] = deque()

    def __bool__(self) -> bool:
        if not self._waiting:
            self._waiting.extend(islice(self._todo, 1))
        return bool(self._waiting)

    def take(self, place: Place | None, working: Collection[Place]) -> Shard | None:
        """The first shard for a worker at `place`; None where all have to wait for another place.

        working: where workers are ready.
        """

        def suiting(last: bool = False) -> Shard | None:
            suits = self._blame.suits
            return next((s for s in self._waiting if suits(s.index, place, working, last)), None)

        shard = suiting()
        if shard is None:
            self._waiting.extend(islice(self._todo, 1))
            shard = suiting() or suiting(last=True)
        if shard is not None:
            self._waiting.remove(shard)
        return shard

    def give_back(self, shard: Shard) -> None:
        self._waiting.appendleft(shard)
