"""The cause of a crashed worker: an image, or the GPU on which the worker ran.

A worker may have several shards in hand. If it crashes, the one that it took first is blamed, and
all of them are then processed without others beside them, so that a further crash has one cause.

A shard that is blamed is tried again as a whole, on another GPU if one works. After two
crashes, a shard is processed image by image, so that a third crash reveals the image that causes
it. This image is quarantined, and the others are committed.

If workers on one GPU crash in a row, at `LIMIT` different shards or while they load the networks,
and no image is finished in between, the GPU is taken out of use. The crashes on it then no longer
count against shards and images. A shard that has crashed workers on two GPUs is not evidence
against either of them, until the image that causes the crashes is known.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

# The number of crashes after which a shard is processed image by image.
ATTEMPTS = 2
# The number of shards and starts that may crash in a row before a GPU is taken out of use.
LIMIT = 3


class Place(NamedTuple):
    """The GPUs of a worker.

    Attributes:
        node: Ray's name of the machine. Several nodes may share a host.
        host: The name of the machine.
        gpus: The numbers of the GPUs.
    """

    node: str
    host: str
    gpus: tuple[str, ...]

    def __str__(self) -> str:
        return f"GPU {', '.join(self.gpus)} of {self.host}"


class Death(NamedTuple):
    """The crash of a worker.

    Attributes:
        place: The GPUs of the worker; None on a CPU.
        error_class: The class of the failure, such as `crash` or `timeout`.
        reason: The message.
        image_id: The image in progress; "" if a whole shard was in progress.
    """

    place: Place | None
    error_class: str
    reason: str
    image_id: str = ""


@dataclass
class History:
    """The failures of a shard.

    Attributes:
        deaths: The crashes of its workers.
        errors: The number of its attempts that raised an error.
        reasons: Why each of its attempts failed.
        suspect: Whether a worker crashed that had it in hand beside the shard that was blamed.
    """

    deaths: list[Death] = field(default_factory=list)
    errors: int = 0
    reasons: list[str] = field(default_factory=list)
    suspect: bool = False

    @property
    def alone(self) -> bool:
        """Whether a worker must have no other shard in hand, so that its crash has one cause."""
        return self.suspect or bool(self.deaths)

    @property
    def places(self) -> set[Place]:
        return {death.place for death in self.deaths if death.place}

    @property
    def isolate(self) -> bool:
        """Whether the shard is to be processed image by image."""
        timed_out = any(death.error_class == "timeout" for death in self.deaths)
        return timed_out or len(self.deaths) >= ATTEMPTS

    @property
    def lost(self) -> dict[str, tuple[str, str]]:
        """The class and the message of the failure of each image that crashed a worker."""
        return {
            death.image_id: (death.error_class, f"{death.image_id}: {death.reason}")
            for death in self.deaths
            if death.image_id
        }


class Blame:
    """The histories of unfinished shards, and the crashes on each GPU.

    Attributes:
        broken: The GPUs that are out of use.
    """

    def __init__(self) -> None:
        self.broken: set[Place] = set()
        self._histories: dict[int, History] = {}
        # Both count since the last image that was finished on the GPU. The value of a shard is
        # True if the image in progress was known.
        self._ended: dict[Place, dict[int, bool]] = {}
        self._starts: dict[Place, int] = {}

    def history(self, shard: int) -> History:
        return self._histories.setdefault(shard, History())

    def died(self, shard: int, death: Death) -> None:
        """Note that a worker crashed while it processed a shard."""
        self.history(shard).deaths.append(death)
        if death.place:
            ended = self._ended.setdefault(death.place, {})
            ended[shard] = ended.get(shard, False) or bool(death.image_id)

    def failed_start(self, place: Place) -> None:
        """Note that a worker crashed before it had loaded the networks."""
        self._starts[place] = self._starts.get(place, 0) + 1

    def worked(self, place: Place | None) -> None:
        """Note that an image was finished on a GPU."""
        if place:
            self._ended.pop(place, None)
            self._starts.pop(place, None)

    def finished(self, shard: int) -> History:
        """Remove the history of a committed shard and return it."""
        history = self._histories.pop(shard, History())
        if history.lost:
            for ended in self._ended.values():
                ended.pop(shard, None)
        return history

    def is_broken(self, place: Place) -> bool:
        """Whether a GPU is to be taken out of use."""
        return self._starts.get(place, 0) + self._crashed_shards(place) >= LIMIT

    def take_out(self, place: Place) -> None:
        """Take a GPU out of use: crashes on it no longer count against shards."""
        self.broken.add(place)
        for history in self._histories.values():
            history.deaths = [death for death in history.deaths if death.place != place]

    def suits(
        self, shard: int, place: Place | None, working: Collection[Place], last: bool = False
    ) -> bool:
        """Whether a shard should be assigned to a worker on a GPU, given their failures so far.

        Args:
            shard: The number of the shard.
            place: The GPUs of the worker; None on a CPU.
            working: The GPUs on which workers are ready.
            last: Whether no other shard is left for the worker.
        """
        history = self._histories.get(shard)
        if place is None or history is None or not history.deaths:
            return True
        doubtful = self._is_doubtful(place)
        if place in history.places or doubtful:
            better = (p for p in working if p not in history.places and not self._is_doubtful(p))
            if next(better, None) is not None:
                return False
        # Other shards, if done first, may show whether the image or the GPU is the cause.
        return last or not (history.lost and doubtful)

    def _is_doubtful(self, place: Place) -> bool:
        return bool(self._ended.get(place) or self._starts.get(place))

    def _crashed_shards(self, place: Place) -> int:
        """Return the number of shards whose crashes are evidence against a GPU.

        They crashed workers on this GPU only, or at a known image on it. Several images of one
        shard count once.
        """
        count = 0
        for shard, isolated in self._ended.get(place, {}).items():
            history = self._histories.get(shard)
            only_here = history is None or len(history.places) < 2
            count += isolated or only_here
        return count
