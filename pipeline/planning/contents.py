"""Compare images with those that a run has read: by their content, if their marks differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.datasets import listing
from dhr_batch.pipeline.datasets.items import Item, Unreadable
from dhr_batch.pipeline.runs.names import part
from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.threads import together
from dhr_batch.stages.faces import looks_like_a_face

# No limit, in megapixels. Only images of a size that the run has read are read again here.
_NO_LIMIT = 1e6
_TABLES = ("images", "quarantine")
_COLUMNS = ("image_id", "source_bytes", "source_sha256")
# The number of images that are read at the same time.
_READERS = 8


class Suspect(NamedTuple):
    """An image whose mark differs from that in the plan of a run.

    Attributes:
        shard: The number of its shard.
        item: The image as it is now.
        change: The difference of the marks.
    """

    shard: int
    item: Item
    change: str


class Verdict(NamedTuple):
    """The result of comparing an image with what a run has read.

    Attributes:
        same: Whether the content is the same. None if it is unknown, because the run has no rows of
            the image, or they do not tell its content.
        has_rows: Whether the run has rows of the image.
        in_quarantine: Whether the image is in quarantine.
    """

    same: bool | None
    has_rows: bool
    in_quarantine: bool


class _Read(NamedTuple):
    """What the tables tell about the file of an image."""

    size: int | None
    sha256: str | None
    in_quarantine: bool


def compare(run: RunRecords, suspects: Sequence[Suspect]) -> Iterator[tuple[Suspect, Verdict]]:
    """Compare images with what a run has read. An image is only read if its size is the same.

    Args:
        run: The records of the run.
        suspects: The images, those of a shard one after the other.

    Raises:
        Damaged: If a table of the run is damaged.
        StorageError: If a storage is unavailable.
    """
    if not suspects:
        return
    parts = Parts(run)
    keys = {key for table in _TABLES for key in run.storage.sizes(table)}
    for shard, group in groupby(suspects, attrgetter("shard")):
        known = _recorded(parts, shard, keys)
        chosen = list(group)
        pairs = [(suspect.item, known.get(suspect.item.image_id)) for suspect in chosen]
        same = stopping.interruptible(partial(together, _is_same, pairs, _READERS))
        for suspect, (_, read), result in zip(chosen, pairs, same, strict=True):
            yield suspect, Verdict(result, read is not None, bool(read and read.in_quarantine))


def _recorded(parts: Parts, shard: int, keys: set[str]) -> dict[str, _Read]:
    found = {}
    for table in _TABLES:
        key = part(table, shard)
        if key not in keys:
            continue
        with parts.open(key) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            rows = file.read(columns=columns).to_pylist()
        for row in rows:
            size, sha256 = row.get("source_bytes"), row.get("source_sha256")
            found[row["image_id"]] = _Read(size, sha256, table == "quarantine")
    for image_id, read in list(found.items()):
        # Of a photograph, only further faces may have rows.
        if photograph := looks_like_a_face(image_id or ""):
            found.setdefault(photograph, read)
    return found


def _is_same(pair: tuple[Item, _Read | None]) -> bool | None:
    item, read = pair
    if read is None or read.sha256 is None:
        return None
    if item.size >= 0 and item.size != read.size:
        return False
    try:
        return digest(listing.read_bytes(item, _NO_LIMIT)) == read.sha256
    except Unreadable:
        return False


def digest(data: bytes) -> str:
    """Return the content hash of an image, as the tables record it."""
    return hashlib.sha256(data).hexdigest()
