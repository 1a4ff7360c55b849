"""Manifests of committed shards, and what the driver keeps of each.

A worker returns the manifest of an attempt; when the driver has committed it, it lies in
`_state/shards/`. A run may have hundreds of thousands, of kilobytes each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from dhr_batch.pipeline.runs.records import JsonRecord

Counts = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class FileFacts(JsonRecord):
    """What is known of a file of a shard."""

    rows: int = 0
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Where(JsonRecord):
    """Where a worker runs. gpus: their ids; node: Ray's name of the machine."""

    number: int = 0
    host: str = ""
    pid: int = 0
    gpus: list[str] = field(default_factory=list)
    node: str = ""


@dataclass(frozen=True)
class FailedImage(JsonRecord):
    """An image that went to quarantine, with the traceback that its row there does not have."""

    image_id: str = ""
    stage: str = ""
    error_class: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Manifest(JsonRecord):
    """What is known of an attempt at a shard.

    files: by table. ok, quarantined: images. errors: number of these by class. seconds: of the
    attempt; stage_seconds: of each stage. memory_peak: most bytes held on the `host` and the `gpu`.
    models: names of those used. worker: None where it ran in the driver's own process. attempts:
    how many the shard took; failed_attempts: why the earlier ones failed.
    clocked: what a benchmark has measured in the worker.
    """

    attempt: str = ""
    files: Mapping[str, FileFacts] = field(default_factory=dict)
    ok: int = 0
    quarantined: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    failures: list[FailedImage] = field(default_factory=list)
    seconds: float = 0.0
    memory_peak: Mapping[str, int] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    worker: Where | None = None
    attempts: int = 1
    failed_attempts: list[str] = field(default_factory=list)
    clocked: Mapping[str, float] | None = None

    @property
    def images(self) -> int:
        return self.ok + self.quarantined

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        files = found.get("files", {}).items()
        return replace(
            super().from_json(found),
            files={table: FileFacts.from_json(facts) for table, facts in files},
            failures=[FailedImage.from_json(failure) for failure in found.get("failures", ())],
            worker=Where.from_json(found["worker"]) if found.get("worker") else None,
        )

    def to_json(self) -> dict[str, Any]:
        content = super().to_json() | {
            "files": {table: facts.to_json() for table, facts in self.files.items()},
            "failures": [failure.to_json() for failure in self.failures],
        }
        return content | ({"worker": self.worker.to_json()} if self.worker else {})


def loads(content: bytes) -> Manifest:
    """A manifest from its JSON. Raises ValueError where it is damaged."""
    return Manifest.from_json(json.loads(content))


def loads_whole(content: bytes) -> Manifest:
    """As `loads`. Raises KeyError or TypeError as well, for one that lacks what is verified."""
    found = json.loads(content)
    for facts in found["files"].values():
        _ = facts["rows"], facts["bytes"], facts["sha256"]
    _ = found["attempt"], found["ok"], found["quarantined"]
    return Manifest.from_json(found)


def dumps(manifest: Manifest) -> bytes:
    """The JSON of a manifest."""
    return json.dumps(manifest.to_json(), ensure_ascii=False, indent=1).encode()


class Finished(NamedTuple):
    """A committed shard. ok, quarantined: images. errors: of these by class; rows: by table."""

    ok: int
    quarantined: int
    attempts: int
    errors: Counts
    rows: Counts

    @property
    def images(self) -> int:
        return self.ok + self.quarantined


class Alike:
    """Makes them, with one copy of what many have in common."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def finished(self, manifest: Manifest) -> Finished:
        rows = {table: facts.rows for table, facts in manifest.files.items()}
        made = Finished(
            ok=manifest.ok,
            quarantined=manifest.quarantined,
            attempts=manifest.attempts,
            errors=self._one(tuple(sorted(manifest.errors.items()))),
            rows=self._one(tuple(rows.items())),
        )
        return self._one(made)

    def _one(self, value: Any) -> Any:
        return self._known.setdefault(value, value)


def total(counts: Iterable[Counts]) -> Counter[str]:
    """Sums by name."""
    found: Counter[str] = Counter()
    for pairs in counts:
        for name, count in pairs:
            found[name] += count
    return found
