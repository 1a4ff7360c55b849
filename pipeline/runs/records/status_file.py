"""The file in which a driver reports what it is doing, for `status` and other readers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dhr_batch.pipeline import sealed
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.runs.records.json_record import JsonRecord
from dhr_batch.pipeline.storage.base import Storage

STATUS = "_state/status.json"

log = logging.getLogger(__name__)


class Damaged(StorageError):
    """The status file is damaged. No result depends on it."""


@dataclass(frozen=True)
class DriverProcess(JsonRecord):
    """The process that writes the status file."""

    host: str | None = None
    pid: int | None = None


@dataclass(frozen=True)
class ImageCounts(JsonRecord):
    """Numbers of images of this start.

    Attributes:
        total: Images that were to be computed when the driver started.
        done: Images with rows.
        quarantined: Images in quarantine.
        before: Images that earlier starts have finished.
    """

    total: int = 0
    done: int = 0
    quarantined: int = 0
    before: int = 0


@dataclass(frozen=True)
class ShardCounts(JsonRecord):
    """Numbers of shards of this start.

    Attributes:
        total: Shards that were to be computed when the driver started.
        done: Finished shards.
    """

    total: int = 0
    done: int = 0


@dataclass(frozen=True)
class Speed(JsonRecord):
    """Computed images per second, since a worker was ready and in the last five minutes.

    Quarantined images are not counted.
    """

    overall: float = 0.0
    last_5_minutes: float = 0.0


@dataclass(frozen=True)
class WorkerStatus(JsonRecord):
    """The state of a worker. Attributes after `since` are None until the worker has started.

    Attributes:
        worker: The number of the worker, from 0.
        what: What the worker is doing.
        shard: The shard that it is computing.
        since: The Unix time at which it began to do so.
        host: The name of its machine.
        pid: Its process.
        gpus: The ids of its GPUs.
        node: The id that Ray gives to the machine.
        device: Its torch device.
        batch_size: The number of images that it computes together.
    """

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
    """The content of the status file.

    Attributes:
        updated: The Unix time at which the file was written.
        started: The Unix time at which the driver started.
        driver: The process that wrote the file.
        images: Numbers of images.
        shards: Numbers of shards.
        images_per_second: The speed.
        seconds_left: The remaining time; None while nothing is known about it.
        errors: The number of images of each class of error that failed in this start.
        workers: The workers.
        throughput: Points [Unix time, number of computed images], including earlier starts. The
            images are those with rows, without those in quarantine.
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
    """Read the status file. Returns the defaults if it does not exist.

    Raises:
        Damaged: If it cannot be parsed.
    """
    content = run.read(STATUS)
    if content is None:
        return StatusContent()
    try:
        with sealed.damage():
            return StatusContent.from_json(json.loads(content))
    except ValueError as error:
        raise Damaged(
            run.locate(STATUS),
            f"it is damaged ({error})",
            "delete it; only the speed of earlier starts is lost",
        ) from error


def dumps(status: StatusContent) -> bytes:
    """Return the content of the status file as JSON."""
    return json.dumps(status.to_json(), ensure_ascii=False).encode()


def writer(run: Storage) -> Callable[[bytes], None]:
    """Return a function that writes the status file.

    It does nothing if a file of this name exists that no driver has written.
    """
    try:
        read_status(run)
    except Damaged as error:
        if run.read(STATUS):
            log.warning("%s; no status is written while it exists", error)
            return lambda content: None
    return lambda content: run.replace(STATUS, content)


def throughput(run: Storage) -> list[list[float]]:
    """Return the throughput of all earlier starts (see `StatusContent`); [] if it is damaged."""
    try:
        return read_status(run).throughput
    except Damaged as error:
        log.warning("%s", error)
        return []
