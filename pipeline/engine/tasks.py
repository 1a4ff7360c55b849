"""What the driver has to do and has given out: the queue of shards, and what each future is for."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.engine.blame import Blame, Place
from dhr_batch.pipeline.planning.plan import Shard


@dataclass(frozen=True)
class Task:
    """What a future stands for: a worker's `join` or `setup` (no shard), or work on a shard.

    position: of the only image asked for, where a shard is given out image by image; -1 while the
    worker is told of it, and behind the last while its tables are closed: no image is to blame.
    """

    worker: int
    what: str
    shard: Shard | None = None
    attempt: str = ""
    position: int | None = None

    @property
    def image(self) -> Item | None:
        """The only image in work, if it is known."""
        if self.shard is None or self.position is None:
            return None
        inside = 0 <= self.position < len(self.shard.items)
        return self.shard.items[self.position] if inside else None


def describe(shard: Shard) -> str:
    """A shard by its number and first images."""
    names = ", ".join(item.image_id for item in shard.items[:3])
    return f"shard {shard.index} ({names}{', ...' if len(shard.items) > 3 else ''})"


class Queue:
    """Shards that wait: those given back first, then `todo`, of which one at a time is made."""

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
