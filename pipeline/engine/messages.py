"""What workers tell the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dhr_batch.pipeline.planning.estimate import GeneratorFacts
from dhr_batch.pipeline.runs.manifests import Manifest


@dataclass(frozen=True)
class Event:
    """Something that happened in a worker.

    what: it does now, or has done. done: images it has finished with this event, of which `failed`
    went to quarantine, as `errors` says for each. seconds: that these images took.
    """

    what: str
    done: int = 0
    failed: int = 0
    errors: Sequence[str] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """What has happened since the last report, and how long the slowest batch in progress takes.

    pace: seconds per image so far, 0 while no stage runs. stuck: which image does not come from
    its place within `image_timeout`, or that the folder of the run takes no table, "" while all
    goes on; no image is to blame for it. receipt: manifest of the shard that has just ended.
    """

    events: Sequence[Event]
    pace: float
    stuck: str
    receipt: Manifest | None = None


@dataclass(frozen=True)
class WorkerFacts:
    """A worker that has loaded its networks. device: name of it; batch_size: images at once."""

    device: str
    batch_size: int
    generator: GeneratorFacts
