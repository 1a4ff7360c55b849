"""The messages between workers and the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dhr_batch.pipeline.forecast import Flight, Passage
from dhr_batch.pipeline.planning.estimate import GeneratorFacts
from dhr_batch.pipeline.runs.records.manifests import Manifest

# The most shards that a worker has in hand. It takes a further one when it has read those that it
# has, and reads only as far ahead as `Line` lets it: so many shards only if each is one batch.
IN_HAND = 12
# The class and the message of the failure of each image that has crashed workers, by image id.
Lost = Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class Event:
    """Something that happened in a worker.

    Attributes:
        what: What the worker is doing or has done, as text for the progress display.
        done: The number of images that are finished with this event, quarantined ones included.
        failed: The number of these that were quarantined.
        errors: The class of each failure.
        seconds: The time that these images took.
        shard: The number of the shard.
    """

    what: str
    done: int = 0
    failed: int = 0
    errors: Sequence[str] = ()
    seconds: float = 0.0
    shard: int = -1


@dataclass(frozen=True)
class Report:
    """What has happened in a worker since its last report.

    Attributes:
        events: The events since the last report.
        pace: Seconds per image of the slowest batch in progress; 0 while no stage runs.
        stuck: The place of an image or of the run that does not answer within the time limit, as a
            message; "" if there is none. No image is blamed for it.
        receipt: The manifest of the shard that has just been finished.
        slow: The shard of the slowest batch in progress; -1 while no stage runs.
        read: The shard that was read to its end last; -1 before the first one.
        flights: The batches that are computed now.
        passed: The batches that have passed a stage since the last report.
    """

    events: Sequence[Event]
    pace: float
    stuck: str
    receipt: Manifest | None = None
    slow: int = -1
    read: int = -1
    flights: Sequence[Flight] = ()
    passed: Sequence[Passage] = ()


@dataclass(frozen=True)
class WorkerFacts:
    """Facts about a worker that has loaded its networks.

    Attributes:
        device: The name of its device.
        batch_size: The number of images that it computes together.
        generator: The sizes of its generator.
    """

    device: str
    batch_size: int
    generator: GeneratorFacts
