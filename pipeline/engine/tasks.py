"""The tasks of workers, and the queue of shards that wait for a worker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.engine.blame import Blame, Place
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.worker.messages import Lost


@dataclass(frozen=True)
class Task(ABC):
    """One request to a worker.

    Attributes:
        worker: The number of the worker.
    """

    worker: int

    @abstractmethod
    def ask(self, handle: Any) -> Any:
        """Send the request to the actor of the worker and return Ray's future."""


class Join(Task):
    """Report where the worker runs. Answered as soon as Ray has started the worker."""

    def ask(self, handle: Any) -> Any:
        return handle.join.remote()


class Setup(Task):
    """Load the networks."""

    def ask(self, handle: Any) -> Any:
        return handle.setup.remote()


@dataclass(frozen=True)
class ShardTask(Task):
    """Work on a shard.

    Attributes:
        shard: The shard.
        attempt: The name under which its tables are staged.
    """

    shard: Shard
    attempt: str

    @property
    def image(self) -> Item | None:
        """The image in progress, if it is known."""
        return None


class WholeShard(ShardTask):
    """Process a shard and return its receipt."""

    def ask(self, handle: Any) -> Any:
        return handle.run_shard.remote(self.shard, self.attempt)


@dataclass(frozen=True)
class OpenShard(ShardTask):
    """Begin a shard that is processed image by image.

    Attributes:
        lost: The images that have crashed workers and are quarantined without a further attempt.
    """

    lost: Lost

    def ask(self, handle: Any) -> Any:
        return handle.isolate.remote(self.shard, self.attempt, self.lost)


@dataclass(frozen=True)
class OneImage(ShardTask):
    """Process the image at `position` of an opened shard."""

    position: int

    @property
    def image(self) -> Item:
        return self.shard.items[self.position]

    def ask(self, handle: Any) -> Any:
        return handle.next_image.remote()


class CloseShard(ShardTask):
    """Close the tables of an opened shard and return its receipt. No image is in progress."""

    def ask(self, handle: Any) -> Any:
        return handle.next_image.remote()


def following(task: OpenShard | OneImage) -> OneImage | CloseShard:
    """Return the next task for an opened shard."""
    position = task.position + 1 if isinstance(task, OneImage) else 0
    if position < len(task.shard.items):
        return OneImage(task.worker, task.shard, task.attempt, position)
    return CloseShard(task.worker, task.shard, task.attempt)


class Queue:
    """The shards that wait for a worker.

    Args:
        todo: The shards, which are read one at a time. Those that are given back come first.
        blame: The histories of shards and GPUs.

    Attributes:
        taken: The number of shards that were taken and not given back.
    """

    def __init__(self, todo: Iterable[Shard], blame: Blame) -> None:
        self._todo, self._blame = iter(todo), blame
        self._waiting: deque[Shard] = deque()
        self.taken = 0

    def __bool__(self) -> bool:
        if not self._waiting:
            self._waiting.extend(islice(self._todo, 1))
        return bool(self._waiting)

    def take(
        self, place: Place | None, working: Collection[Place], beside: bool = False
    ) -> Shard | None:
        """Remove the first shard that suits a worker and return it.

        Args:
            place: The GPUs of the worker; None on a CPU.
            working: The GPUs on which workers are ready.
            beside: Whether the worker has other shards in hand.

        Returns:
            The shard; None if all shards have to wait for another GPU, or for a worker without
            other shards.
        """

        def first(last: bool = False) -> Shard | None:
            for shard in self._waiting:
                if beside and self._blame.history(shard.index).alone:
                    continue
                if self._blame.suits(shard.index, place, working, last):
                    return shard
            return None

        shard = first()
        if shard is None:
            self._waiting.extend(islice(self._todo, 1))
            shard = first() or first(last=True)
        if shard is not None:
            self._waiting.remove(shard)
            self.taken += 1
        return shard

    def give_back(self, shard: Shard) -> None:
        """Put a shard back at the front of the queue."""
        self.taken -= 1
        self._waiting.appendleft(shard)
