"""The file in which a driver says what it does, as others read it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.runs.records import JsonRecord
from dhr_batch.pipeline.storage.base import Storage

STATUS = "_state/status.json"

log = logging.getLogger(__name__)


class Damaged(StorageError):
    """The file cannot be read; nothing depends on it."""


@dataclass(frozen=True)
class DriverProcess(JsonRecord):
    """The process that writes the file."""

    host: str | None = None
    pid: int | None = None


@dataclass(frozen=True)
class ImageCounts(JsonRecord):
    """Images of this start. total: to do; before: finished by earlier starts."""

    total: int = 0
    done: int = 0
    quarantined: int = 0
    before: int = 0


@dataclass(frozen=True)
class ShardCounts(JsonRecord):
    """Shards of this start. total: to do."""

    total: int = 0
    done: int = 0


@dataclass(frozen=True)
class Speed(JsonRecord):
    """Images per second, since this start began and in the last minutes."""

    overall: float = 0.0
    last_5_minutes: float = 0.0


@dataclass(frozen=True)
class WorkerStatus(JsonRecord):
    """A worker. what: it does; since: Unix time; shard: in hand. The rest is None until it runs."""

    worker: int = 0
    what: str = ""
    shard: int | None = None
    since: float | None = None
    host: str | None = None
    pid: int | None = None
    gpus: list[str] | None = None
    node: str | None = None
    device: str | None = None
    batch_size: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"worker": self.worker, "what": self.what, "shard": self.shard} | super().to_json()


@dataclass(frozen=True)
class StatusContent(JsonRecord):
    """The content of the file. updated, started: Unix times, of the file and of this start.

    seconds_left: None before the first image. errors: failed images of this start by class.
    throughput: points [Unix time, images finished] of all starts so far.
    """

    updated: float | None = None
    started: float | None = None
    driver: DriverProcess = field(default_factory=DriverProcess)
    images: ImageCounts = field(default_factory=ImageCounts)
    shards: ShardCounts = field(default_factory=ShardCounts)
    images_per_second: Speed | None = None
    seconds_left: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    workers: list[WorkerStatus] = field(default_factory=list)
    throughput: list[list[float]] = field(default_factory=list)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        read, speed = super().from_json(found), found.get("images_per_second")
        return replace(
            read,
            driver=DriverProcess.from_json(found.get("driver", {})),
            images=ImageCounts.from_json(found.get("images", {})),
            shards=ShardCounts.from_json(found.get("shards", {})),
            images_per_second=Speed.from_json(speed) if speed else None,
            workers=[WorkerStatus.from_json(worker) for worker in found.get("workers", ())],
        )

    def to_json(self) -> dict[str, Any]:
        speed = self.images_per_second or Speed()
        return super().to_json() | {
            "driver": self.driver.to_json(),
            "images": self.images.to_json(),
            "shards": self.shards.to_json(),
            "images_per_second": speed.to_json(),
            "seconds_left": self.seconds_left,
            "workers": [worker.to_json() for worker in self.workers],
        }


def read_status(run: Storage) -> StatusContent:
    """What the last driver wrote; nothing but defaults where none did. Raises Damaged."""
    content = run.read(STATUS)
    if content is None:
        return StatusContent()
    try:
        return StatusContent.from_json(json.loads(content))
    except ValueError as error:
        raise Damaged(
            run.locate(STATUS),
            f"it is damaged ({error})",
            "delete it; only the speed of earlier starts is lost",
        ) from error


def dumps(status: StatusContent) -> bytes:
    """The JSON of the file."""
    return json.dumps(status.to_json(), ensure_ascii=False).encode()


def writer(run: Storage) -> Callable[[bytes], None]:
    """What writes the file; nothing where another file that no driver wrote has its name."""
    try:
        read_status(run)
    except Damaged as error:
        if run.read(STATUS):
            log.warning("%s; until then no status is written", error)
            return lambda content: None
    return lambda content: run.replace(STATUS, content)


def throughput(run: Storage) -> list[list[float]]:
    """Points [Unix time, images finished] of all starts so far; none where the file is damaged."""
    try:
        return read_status(run).throughput
    except Damaged as error:
        log.warning("%s", error)
        return []
