"""The images of a run that failed, and how they are tried again."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.storage.base import Storage

_COLUMNS = ("image_id", "stage", "error_class", "message")


class QuarantinedImage(BaseModel):
    """A row of the table. waiting: its shard was given back and is to be made again."""

    image_id: str
    stage: str
    error_class: str
    message: str
    shard: int
    waiting: bool


def quarantined(
    place: str | Path | Storage, error_class: str | None = None
) -> list[QuarantinedImage]:
    """Quarantined images in plan order; of one class only, if given.

    Raises Refused where there is no run, or where no image is of that class but others are.
    """
    run = RunFolder(place)
    return of_class(_rows(run), error_class)


def of_class(rows: list[QuarantinedImage], error_class: str | None) -> list[QuarantinedImage]:
    """The rows of one class, or all. Raises Refused, naming the classes there are."""
    classes = sorted({row.error_class for row in rows})
    if error_class is not None and rows and error_class not in classes:
        raise Refused(
            f"--class {error_class}",
            "no image is quarantined as this",
            f"choose from: {', '.join(classes)}",
        )
    return [row for row in rows if error_class in (None, row.error_class)]


def requeue(place: str | Path | Storage, error_class: str | None = None) -> list[QuarantinedImage]:
    """Give the shards of quarantined images back; the next start of the run makes them again.

    The files of these images may have changed meanwhile, all others may not. Returns the images.
    Raises Refused as `quarantined` does, and where a driver is at work; StorageError.
    """
    run = RunFolder(place)
    run.started_plan()
    run.lock()
    try:
        run.recover()
        rows = of_class(_rows(run), error_class)
        images: dict[int, set[str]] = {}
        for row in rows:
            images.setdefault(row.shard, set()).add(row.image_id)
        if images:
            run.reopen(images)
    finally:
        run.unlock()
    return rows


def _rows(run: RunFolder) -> list[QuarantinedImage]:
    run.started_plan()
    manifests = run.committed()
    found = []
    for key in run.storage.parts("quarantine"):
        shard = int(key.rpartition("part-")[2].removesuffix(".parquet"))
        waiting = shard not in manifests
        # Each shard has a table, and those of most are empty.
        content = run.storage.read(key) if waiting or manifests[shard].quarantined else None
        if content is not None:
            table = pq.read_table(pa.BufferReader(content), columns=list(_COLUMNS))
            rows = table.to_pylist()
            found += [QuarantinedImage(**row, shard=shard, waiting=waiting) for row in rows]
    return found
