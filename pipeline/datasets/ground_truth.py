"""Parquet of synthetic pictures: beside each picture what is known of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import UnidentifiedImageError

from dhr_batch.pipeline.datasets import parquet as parquet_rows
from dhr_batch.pipeline.datasets.items import Item, Unreadable
from dhr_batch.pipeline.tables.records import picture
from dhr_batch.pipeline.tables.rows import png
from dhr_batch.pipeline.tables.schemas import PICTURE
from dhr_batch.stages.base import Truth

_CODE = pa.list_(pa.float32(), 512)
# Tells such a file from others that happen to have columns of these names.
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
# Of `kind`, in pictures without an occluder.
NONE = "none"
_ROW_GROUP = 8
_TRUTH = ("clean", "face", "occluder", "kind", "z", "truncation", "latent")


def row(image_id: str, image: np.ndarray, kind: str, truth: Truth) -> dict[str, Any]:
    """A row of `SCHEMA`. image: uint8 [T, T, 3]; kind: of the occluder, or `none`."""
    hidden = truth.occluded * float(truth.occluder[truth.face].mean())
    return {
        "image_id": image_id,
        "image": {"bytes": png(image), "path": image_id},
        "clean": {"bytes": png(truth.clean), "path": None},
        "face": {"bytes": png(truth.face), "path": None},
        "occluder": {"bytes": png(truth.occluder), "path": None},
        "kind": kind,
        "share": hidden,
        "z": truth.z,
        "truncation": truth.truncation,
        "latent": truth.latent,
    }


def write(path: Path, rows: Iterable[dict[str, Any]], about: dict[str, str]) -> None:
    """Write rows of `SCHEMA` to a Parquet file. about: goes into its metadata."""
    schema = SCHEMA.with_metadata({MARK.decode(): "1", **about})
    waiting: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for made in rows:
            waiting.append(made)
            if len(waiting) == _ROW_GROUP:
                file.write_table(pa.Table.from_pylist(waiting, schema=schema))
                waiting = []
        if waiting:
            file.write_table(pa.Table.from_pylist(waiting, schema=schema))


def read(item: Item) -> Truth | None:
    """What is known of an image; None for one that is not in such a Parquet file.

    Raises Unreadable for a damaged row, StorageError.
    """
    if not item.leaf or not parquet_rows.marked(item.location, MARK):
        return None
    found = parquet_rows.values(item.location, item.at, _TRUTH)
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
