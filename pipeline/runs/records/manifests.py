"""Manifests of committed shards, and the summaries of them that the driver keeps in memory.

A worker returns a manifest for each attempt at a shard. To commit the attempt, the driver writes
the manifest to `_state/shards/`. A run may have hundreds of thousands of manifests, of a few
kilobytes each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dhr_batch.pipeline import sealed
from dhr_batch.pipeline.runs.records.json_record import JsonRecord
from dhr_batch.stages.faces import face_id
from dhr_batch.stages.registry import STAGES

Counts = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class FileFacts(JsonRecord):
    """The number of rows, the size in bytes and the sha256 of a file of a shard."""

    rows: int = 0
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Where(JsonRecord):
    """The place where a worker runs.

    Attributes:
        number: The number of the worker, from 0.
        host: The name of the machine.
        pid: The process.
        gpus: The ids of its GPUs.
        node: The id that Ray gives to the machine.
    """

    number: int = 0
    host: str = ""
    pid: int = 0
    gpus: list[str] = field(default_factory=list)
    node: str = ""


@dataclass(frozen=True)
class FailedImage(JsonRecord):
    """A quarantined image, with the traceback, which its row in the table `quarantine` lacks."""

    image_id: str = ""
    stage: str = ""
    error_class: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Manifest(JsonRecord):
    """The result of an attempt at a shard.

    Attributes:
        attempt: The name of the attempt.
        files: The file of each table.
        ok: The number of images with rows.
        quarantined: The number of images in quarantine.
        errors: The number of quarantined images of each class of error.
        failures: The quarantined images.
        faces: The numbers of the faces with rows, by the id of the photograph, for photographs with
            several faces; None if there are none.
        seconds: The duration of the attempt.
        memory_peak: The peak memory in bytes, under `host` and `gpu`.
        stage_seconds: The duration of each stage in seconds.
        models: The names of the models used.
        worker: The worker; None if the attempt ran in the process of the driver.
        attempts: The number of attempts that the shard took.
        failed_attempts: Why each of the earlier attempts failed.
        clocked: The measurements of a benchmark in the worker.
        run: The identity of its run, as in `plan.json`; empty in runs of earlier versions.
        shard: The number of its shard; None in runs of earlier versions.
    """

    attempt: str = ""
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    ok: int = 0
    quarantined: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    failures: list[FailedImage] = field(default_factory=list)
    faces: Mapping[str, Sequence[int]] | None = None
    seconds: float = 0.0
    memory_peak: Mapping[str, int] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    worker: Where | None = None
    attempts: int = 1
    failed_attempts: list[str] = field(default_factory=list)
    clocked: Mapping[str, float] | None = None
    run: str = field(default="", compare=False)
    shard: int | None = field(default=None, compare=False)

    @property
    def images(self) -> int:
        """The number of images."""
        return self.ok + self.quarantined

    def stray(self, shard: int, run: str | None) -> str:
        """Return why it is not the manifest of a shard of a run; "" if it is.

        Files match the manifest beside which they were copied, even in another run.

        Args:
            shard: The number of the shard.
            run: The identity of the run; None if it is not known.
        """
        if self.shard not in (None, shard):
            return f"it is that of shard {self.shard}"
        if run is not None and self.run != run:
            return (
                "it is of another run than plan.json; put back plan.json if that is the wrong one"
            )
        return ""

    def computed(self, stage: str) -> int:
        """Return the number of images that a stage has computed.

        Images that failed in an earlier one did not reach it.
        """
        reached = STAGES[STAGES.index(stage) :] if stage in STAGES else ()
        return self.ok + sum(failure.stage in reached for failure in self.failures)

    def rows_of(self, image_id: str) -> list[str]:
        """Return the ids under which an image has rows, if it is not in quarantine."""
        numbers = (self.faces or {}).get(image_id, (0,))
        return [face_id(image_id, number) for number in numbers]

    def to_json(self) -> dict[str, Any]:
        content = super().to_json() | {
            "files": {table: facts.to_json() for table, facts in self.files.items()},
            "failures": [failure.to_json() for failure in self.failures],
        }
        return content | ({"worker": self.worker.to_json()} if self.worker else {})


def loads(content: bytes) -> Manifest:
    """Parse a manifest. Raises ValueError if it is damaged, or does not match its checksum."""
    with sealed.damage():
        return Manifest.from_json(sealed.loads(content))


def loads_whole(content: bytes) -> Manifest:
    """Parse a manifest that must have all fields which `verify` compares.

    Raises:
        ValueError: If it is damaged, does not match its checksum, or a field is missing.
    """
    with sealed.damage():
        found = sealed.loads(content)
        for facts in found["files"].values():
            _ = facts["rows"], facts["bytes"], facts["sha256"]
        _ = found["attempt"], found["ok"], found["quarantined"]
        return Manifest.from_json(found)


def dumps(manifest: Manifest) -> bytes:
    """Return a manifest as JSON with a checksum."""
    return sealed.dumps(manifest.to_json())


class Finished(NamedTuple):
    """The summary of a committed shard.

    Attributes:
        ok: The number of images with rows.
        quarantined: The number of images in quarantine.
        attempts: The number of attempts that the shard took.
        errors: The number of quarantined images of each class of error.
        rows: The number of rows of each table.
    """

    ok: int
    quarantined: int
    attempts: int
    errors: Counts
    rows: Counts

    @property
    def images(self) -> int:
        """The number of images."""
        return self.ok + self.quarantined


class Summaries:
    """Creates summaries of manifests. Equal values are stored once, as most shards are alike."""

    def __init__(self) -> None:
        self._values: dict[Any, Any] = {}

    def finished(self, manifest: Manifest) -> Finished:
        """Return the summary of a manifest."""
        rows = {table: facts.rows for table, facts in manifest.files.items()}
        summary = Finished(
            ok=manifest.ok,
            quarantined=manifest.quarantined,
            attempts=manifest.attempts,
            errors=self._shared(tuple(sorted(manifest.errors.items()))),
            rows=self._shared(tuple(rows.items())),
        )
        return self._shared(summary)

    def _shared(self, value: Any) -> Any:
        return self._values.setdefault(value, value)


def total(counts: Iterable[Counts]) -> Counter[str]:
    """Add up counts by name."""
    sums: Counter[str] = Counter()
    for pairs in counts:
        for name, count in pairs:
            sums[name] += count
    return sums
