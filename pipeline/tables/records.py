"""Convert rows of the tables to records."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dhr_batch.pipeline.tables import codec
from dhr_batch.pipeline.tables.rows import STATE, Row
from dhr_batch.stages.record import CONTOURS, START, EditedImage, Record


def record_of(image_id: str, tables: Mapping[str, Sequence[Row]]) -> Record:
    """Restore the record of one image from its rows. Only deltas lose precision (see `codec`).

    Args:
        image_id: The image.
        tables: The rows of this image by table. Fields of tables that are not given stay empty.

    Raises:
        LookupError, ValueError, OSError: If a row is damaged.
    """
    fields: dict[str, Any] = {"source": image_id}
    pictures = {}
    for row in tables.get("images", ()):
        pictures[row["kind"], row["edit_name"], row["edit_strength"]] = picture(row["image"])
        if row["kind"] == "aligned":
            fields |= _source_fields(row)
    names = {"image": "aligned", "inverted": "inverted", "refined": "refined"}
    fields |= {name: pictures.get((kind, None, None)) for name, kind in names.items()}
    for row in tables.get("latents", ()):
        fields["latent"] = np.array(row["latent"], np.float32)
    for row in tables.get("masks", ()):
        fields["labels" if row["kind"] == "labels" else "mask"] = picture(row["mask"])
    if "deltas" in tables:
        fields |= refinement(image_id, tables["deltas"])
    fields["edits"] = tuple(
        _edit(row, pictures["edit", row["edit"], row["strength"]])
        for row in tables.get("edits", ())
    )
    return Record(image_id, **fields)


def _edit(row: Row, image: np.ndarray) -> EditedImage:
    values = {pair["key"]: pair["value"] for pair in row["effect"]}
    return EditedImage(
        row["edit"],
        row["strength"],
        row["direction_sha256"],
        np.array(row["latent"], np.float32),
        image,
        start=values.get(START + row["edit"]),
        contours={name: values[name] for name in CONTOURS if name in values},
    )


def _source_fields(row: Row) -> dict[str, Any]:
    sizes = row["source_width"], row["source_height"]
    return {
        "source": row["source"],
        "split": row["split"],
        "face_index": row["face_index"],
        "source_size": None if None in sizes else sizes,
        "source_bytes": row.get("source_bytes"),
        "source_sha256": row.get("source_sha256"),
        "quad": None if row["quad"] is None else np.array(row["quad"]).reshape(4, 2),
        "notes": tuple(note for note in (row["note"] or "").split("; ") if note),
    }


def picture(value: Mapping[str, Any]) -> np.ndarray:
    """Decode a picture or mask of a table to uint8 [H, W, 3] or [H, W], or to bool [H, W]."""
    with Image.open(io.BytesIO(value["bytes"]), formats=("PNG",)) as image:
        return np.array(image)


def refinement(image_id: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the fields `delta`, `feature` and `state` of a record from rows of the table `deltas`.

    Raises:
        ValueError: If a row cannot be decoded. The message names the tensor.
    """
    found = tensors(image_id, rows)
    state = {row["tensor"]: found.pop(row["tensor"]) for row in rows if row["kind"] == STATE}
    return {"feature": found.pop("feature", None), "delta": found, "state": state}


def tensors(image_id: str, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Decode rows of the table `deltas`.

    Args:
        image_id: The image, for messages.
        rows: Its rows.

    Returns:
        Arrays by the name of the tensor, float32 except for those that are stored exactly.

    Raises:
        ValueError: If a row cannot be decoded. The message names the tensor.
    """
    found = {}
    for row in rows:
        try:
            encoded, shape = codec.Encoded.of(row), tuple(row["shape"])
            found[row["tensor"]] = codec.decode(encoded, shape, row["dtype"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{row['tensor']} of {image_id!r}: {error}") from error
    return found
