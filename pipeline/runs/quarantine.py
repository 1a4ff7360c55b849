"""The images of a run that failed, and how to try them again."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import shard_of
from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.runs.reopening import reopen
from dhr_batch.pipeline.storage.base import Storage

_COLUMNS = ("image_id", "stage", "error_class", "message")


class QuarantinedImage(BaseModel):
    """A row of the table `quarantine`.

    Attributes:
        image_id: The image.
        stage: The stage that failed.
        error_class: The class of the error.
        message: The text of the error.
        shard: The number of the shard of the image.
        waiting: Whether the shard was reopened and will be computed again by the next start.
    """

    image_id: str
    stage: str
    error_class: str
    message: str
    shard: int
    waiting: bool


def quarantined(
    place: str | Path | Storage, error_class: str | None = None
) -> list[QuarantinedImage]:
    """Return the quarantined images of a run, in the order of its plan.

    Args:
        place: The run.
        error_class: Return only images with this class of error.

    Raises:
        NoRun: If the place is not a run.
        Refused: If images are quarantined, but none of them with this class.
    """
    return of_class(_rows(RunFolder(place)), error_class)


def of_class(rows: list[QuarantinedImage], error_class: str | None) -> list[QuarantinedImage]:
    """Return the rows with one class of error, or all rows if no class is given.

    Raises:
        Refused: If there are rows, but none of this class. The message lists the classes.
    """
    classes = sorted({row.error_class for row in rows})
    if error_class is not None and rows and error_class not in classes:
        raise Refused(
            f"--class {error_class}",
            "no image is quarantined with this class of error",
            f"choose from: {', '.join(classes)}",
        )
    return [row for row in rows if error_class in (None, row.error_class)]


def requeue(place: str | Path | Storage, error_class: str | None = None) -> list[QuarantinedImage]:
    """Reopen the shards of quarantined images, so that the next start computes them again.

    The files of these images may be different then. The files of all other images must be the same.

    Args:
        place: The run.
        error_class: Reopen only the shards of images with this class of error.

    Returns:
        The images to be tried again.

    Raises:
        NoRun: If the place is not a run.
        Refused: If no image has this class of error, or another process is working on the run.
        StorageError: If the storage does not answer.
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
            reopen(run, images)
    finally:
        run.unlock()
    return rows


def _rows(run: RunFolder) -> list[QuarantinedImage]:
    run.started_plan()
    parts, found = Parts(run), []
    for key in parts.table("quarantine"):
        shard = shard_of(key)
        waiting = shard not in parts.manifests
        # Every shard has a file of this table. Most of them are empty and need not be read.
        if waiting or parts.manifests[shard].quarantined:
            with parts.open(key) as file:
                rows = file.read(columns=list(_COLUMNS)).to_pylist()
            found += [QuarantinedImage(**row, shard=shard, waiting=waiting) for row in rows]
    return found
