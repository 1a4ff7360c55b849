"""Reads the bytes of an image into a record."""

from __future__ import annotations

from dataclasses import replace

from dhr_batch.pipeline.datasets import ground_truth, listing
from dhr_batch.pipeline.datasets.items import Item, Unreadable
from dhr_batch.pipeline.planning import contents
from dhr_batch.pipeline.planning.earlier_run import Reader
from dhr_batch.stages.options.align import MAX_MEGAPIXELS
from dhr_batch.stages.record import Record


def read_record(
    item: Item,
    split: str,
    stored: Reader | None = None,
    truth: Item | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> Record:
    """Return the record of an image with the bytes of its file, or with a failure to read it.

    Args:
        item: The image.
        split: The split of the dataset.
        stored: The reader of the earlier run, for a run that begins from another one.
        truth: The ground truth of an image of such a run, if it has one.
        max_megapixels: The largest image. Files that are larger than such images are not read.

    Raises:
        StorageError: If the image cannot be read for a reason that does not concern the image.
    """
    record = Record(image_id=item.image_id, source=item.image_id, split=split)
    try:
        if stored is not None:
            found = ground_truth.read_truth(truth) if truth else None
            return replace(stored.record(item), truth=found)
        data = listing.read_bytes(item, max_megapixels)
        record = replace(
            record, data=data, source_bytes=len(data), source_sha256=contents.digest(data)
        )
        return replace(record, truth=ground_truth.read_truth(item))
    except Unreadable as error:
        message = f"{item.image_id} cannot be read: {error}"
        return record.failed("read", error.error_class, message)
