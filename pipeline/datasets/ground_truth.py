"""Parquet files of synthetic pictures, with the ground truth of each picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import UnidentifiedImageError

from dhr_batch.pipeline.datasets import parquet
from dhr_batch.pipeline.datasets.items import Item, Unreadable
from dhr_batch.pipeline.tables.records import picture
from dhr_batch.pipeline.tables.rows import png
from dhr_batch.pipeline.tables.schemas import PICTURE
from dhr_batch.stages.record import Truth

_CODE = pa.list_(pa.float32(), 512)
# A metadata key that distinguishes such a file from others with the same column names.
MARK = b"dhr_batch.truth"
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", PICTURE, nullable=False),
        pa.field("clean", PICTURE, nullable=False),
        pa.field("face", PICTURE, nullable=False),
        pa.field("occluder", PICTURE, nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("share", pa.float64(), nullable=False),
        pa.field("z", _CODE, nullable=False),
        pa.field("truncation", pa.float64(), nullable=False),
        pa.field("latent", _CODE, nullable=False),
    ]
)
# The value of `kind` for pictures without an occluder.
NONE = "none"
_ROW_GROUP = 8
_TRUTH = ("clean", "face", "occluder", "kind", "z", "truncation", "latent")


def row(image_id: str, image: np.ndarray, kind: str, truth: Truth) -> dict[str, Any]:
    """Return a row of `SCHEMA`.

    Args:
        image_id: The id of the picture.
        image: uint8 [T, T, 3].
        kind: The kind of the occluder, or `none`.
        truth: The ground truth.
    """
    covered = truth.occluded * float(truth.occluder[truth.face].mean())
    return {
        "image_id": image_id,
        "image": {"bytes": png(image), "path": image_id},
        "clean": {"bytes": png(truth.clean), "path": None},
        "face": {"bytes": png(truth.face), "path": None},
        "occluder": {"bytes": png(truth.occluder), "path": None},
        "kind": kind,
        "share": covered,
        "z": truth.z,
        "truncation": truth.truncation,
        "latent": truth.latent,
    }


def write_truths(path: Path, rows: Iterable[dict[str, Any]], about: dict[str, str]) -> None:
    """Write a Parquet file.

    Args:
        path: The file.
        rows: Rows of `SCHEMA`.
        about: Keys and values for the metadata of the file.
    """
    schema = SCHEMA.with_metadata({MARK.decode(): "1", **about})
    pending: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as file:
        for row in rows:
            pending.append(row)
            if len(pending) == _ROW_GROUP:
                file.write_table(pa.Table.from_pylist(pending, schema=schema))
                pending = []
        if pending:
            file.write_table(pa.Table.from_pylist(pending, schema=schema))


def read_truth(item: Item) -> Truth | None:
    """Return the ground truth of an image, or None if its file has none.

    Raises:
        Unreadable: If the row is damaged.
        StorageError: If the storage is unavailable.
    """
    if not item.leaf or not parquet.marked(item.location, MARK):
        return None
    found = parquet.values(item.location, item.at, _TRUTH)
    try:
        return Truth(
            clean=picture(found["clean"]),
            face=picture(found["face"]),
            occluder=picture(found["occluder"]),
            occluded=found["kind"] != NONE,
            z=np.array(found["z"], np.float32),
            truncation=found["truncation"],
            latent=np.array(found["latent"], np.float32),
        )
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        message = f"{item.location}: the ground truth of row {item.at} cannot be read: {error}"
        raise Unreadable(message) from error
