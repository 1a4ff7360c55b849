"""Whom the end of a worker is held against: an image, or the GPU it ran on.

A shard whose worker ends is tried again as a whole, on another GPU where one works. A shard that
has ended two workers is given out image by image, so that the image at which a third one ends is
known: it is quarantined, and the others are committed.

A GPU on which workers end one after the other, at `LIMIT` different shards or while they load
the networks, with no image finished there in between, is taken out of use. What ended there is
then held against no shard and no image. A shard that ended workers on two GPUs says nothing about
either of them, until it is known which of its images did it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

# Workers that a shard may end before it is given out image by image.
ATTEMPTS = 2
# What may end a worker on a GPU, one after the other, before the GPU is taken out of use.
LIMIT = 3


class Place(NamedTuple):
    """The GPU, or GPUs, of a worker. node: Ray's name of the machine; several may share a host."""

    node: str
    host: str
    gpus: tuple[str, ...]

    def __str__(self) -> str:
        return f"GPU {', '.join(self.gpus)} of {self.host}"


class Death(NamedTuple):
    """The end of a worker. place: None on a CPU. image_id: "" where a whole shard was in work."""

    place: Place | None
    error_class: str
    reason: str
    image_id: str = ""


@dataclass
class History:
    """What went wrong with a shard. errors: raised by its attempts; reasons: of all attempts."""

    deaths: list[Death] = field(default_factory=list)
    errors: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def places(self) -> set[Place]:
        return {death.place for death in self.deaths if death.place}

    @property
    def isolate(self) -> bool:
        """Whether its images are to be asked for one by one."""
        late = any(death.error_class == "timeout" for death in self.deaths)
        return late or len(self.deaths) >= ATTEMPTS

    @property
    def lost(self) -> dict[str, tuple[str, str]]:
        """Class and message of the images that ended a worker, by id."""
        return {
            death.image_id: (death.error_class, f"{death.image_id}: {death.reason}")
            for death in self.deaths
            if death.image_id
        }


class Blame:
    """The histories of unfinished shards, and what ended on which GPU. broken: out of use."""

    def __init__(self) -> None:
        self.broken: set[Place] = set()
        self._histories: dict[int, History] = {}
        # Since an image was last finished there: shards, with whether an image of it was known to
        # be in work, and starts.
        self._ended: dict[Place, dict[int, bool]] = {}
        self._starts: dict[Place, int] = {}

    def history(self, shard: int) -> History:
        return self._histories.setdefault(shard, History())

    def died(self, shard: int, death: Death) -> None:
        """A worker ended at a shard, or at one of its images."""
        self.history(shard).deaths.append(death)
        if death.place:
            ended = self._ended.setdefault(death.place, {})
            ended[shard] = ended.get(shard, False) or bool(death.image_id)

    def failed_start(self, place: Place) -> None:
        """A worker ended before it had loaded the networks."""
        self._starts[place] = self._starts.get(place, 0) + 1

    def worked(self, place: Place | None) -> None:
        """An image was finished there."""
        if place:
            self._ended.pop(place, None)
            self._starts.pop(place, None)

    def finished(self, shard: int) -> History:
        """A shard is done, and its history over."""
        history = self._histories.pop(shard, History())
        if history.lost:
            for ended in self._ended.values():
                ended.pop(shard, None)
        return history

    def is_broken(self, place: Place) -> bool:
        return self._starts.get(place, 0) + self._things(place) >= LIMIT

    def take_out(self, place: Place) -> None:
        """Hold nothing that ended there against any shard."""
        self.broken.add(place)
        for history in self._histories.values():
            history.deaths = [death for death in history.deaths if death.place != place]

    def suits(
        self, shard: int, place: Place | None, working: Collection[Place], last: bool = False
    ) -> bool:
        """Whether a worker should be given a shard, for what went wrong there and with the shard.

        working: where workers are ready. last: nothing else is left to do.
        """
        history = self._histories.get(shard)
        if place is None or history is None or not history.deaths:
            return True
        doubtful = self._is_doubtful(place)
        if place in history.places or doubtful:
            better = (p for p in working if p not in history.places and not self._is_doubtful(p))
            if next(better, None) is not None:
                return False
        # Whatever else comes first may show whether the image or the GPU was to blame.
        return last or not (history.lost and doubtful)

    def _is_doubtful(self, place: Place) -> bool:
        return bool(self._ended.get(place) or self._starts.get(place))

    def _things(self, place: Place) -> int:
        """Shards that ended workers on this GPU alone, or at an image asked for here.

        Several images of one shard may all be bad, and count once.
        """
        count = 0
        for shard, isolated in self._ended.get(place, {}).items():
            history = self._histories.get(shard)
            only_here = history is None or len(history.places) < 2
            count += isolated or only_here
        return count
