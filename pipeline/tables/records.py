"""Rows of the tables back to the `Record` they were made from."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dhr_batch.pipeline.tables import codec
from dhr_batch.pipeline.tables.rows import Row
from dhr_batch.stages.base import EditedImage, Record


def record_of(image_id: str, tables: Mapping[str, Sequence[Row]]) -> Record:
    """What the rows of one image tell, by table; those of other tables are left out.

    Lossless for all but deltas (see `codec`). Raises LookupError, ValueError or OSError for damaged
    rows.
    """
    fields: dict[str, Any] = {"source": image_id}
    pictures = {}
    for row in tables.get("images", ()):
        pictures[row["kind"], row["edit_name"], row["edit_strength"]] = picture(row["image"])
        if row["kind"] == "aligned":
            fields |= _about(row)
    names = {"image": "aligned", "inverted": "inverted", "refined": "refined"}
    fields |= {name: pictures.get((kind, None, None)) for name, kind in names.items()}
    for row in tables.get("latents", ()):
        fields["latent"] = np.array(row["latent"], np.float32)
    for row in tables.get("masks", ()):
        fields["labels" if row["kind"] == "labels" else "mask"] = picture(row["mask"])
    if "deltas" in tables:
        delta = tensors(image_id, tables["deltas"])
        fields |= {"feature": delta.pop("feature", None), "delta": delta}
    fields["edits"] = tuple(
        EditedImage(
            row["edit"],
            row["strength"],
            row["direction_sha256"],
            np.array(row["latent"], np.float32),
            pictures["edit", row["edit"], row["strength"]],
        )
        for row in tables.get("edits", ())
    )
    return Record(image_id, **fields)


def _about(row: Row) -> dict[str, Any]:
    sizes = row["source_width"], row["source_height"]
    return {
        "source": row["source"],
        "split": row["split"],
        "face_index": row["face_index"],
        "source_size": None if None in sizes else sizes,
        "quad": None if row["quad"] is None else np.array(row["quad"]).reshape(4, 2),
        "notes": tuple(note for note in (row["note"] or "").split("; ") if note),
    }


def picture(value: Mapping[str, Any]) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W], or bool [H, W], of a picture or mask in a table."""
    with Image.open(io.BytesIO(value["bytes"]), formats=("PNG",)) as image:
        return np.array(image)


def tensors(image_id: str, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Tensors by name from rows of the table `deltas`, float32.

    Raises ValueError, naming the tensor, for a row that cannot be decoded.
    """
    found = {}
    for row in rows:
        try:
            found[row["tensor"]] = codec.decode(codec.Encoded.of(row), tuple(row["shape"]))
        except ValueError as error:
            raise ValueError(f"{row['tensor']} of {image_id!r}: {error}") from error
    return found
