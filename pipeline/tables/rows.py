"""Convert records to rows of the tables."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo, putchunk

from dhr_batch.pipeline.picture_names import edit_label, picture_file
from dhr_batch.pipeline.tables import codec
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.stages.record import START, EditedImage, Record

Row = dict[str, Any]
# The kind of rows of the table `deltas` that are stored exactly.
STATE = "state"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The filter of PNG that stores the difference from the row above.
_UP = 2
_LEVEL = 1


def png(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode a picture as PNG.

    One filter for all rows takes half of the time of Pillow's fastest settings.

    Args:
        pixels: uint8 [H, W, 3] or [H, W], or bool [H, W], which is stored with 1 bit per pixel.
        text: Keys and values of tEXt chunks.
    """
    notes = PngInfo()
    for key, value in (text or {}).items():
        notes.add_text(key, value)
    height, width = pixels.shape[:2]
    depth, colour = 1 if pixels.dtype == bool else 8, 2 if pixels.ndim == 3 else 0
    rows = (np.packbits(pixels, 1) if depth == 1 else pixels).reshape(height, -1)
    filtered = np.full((height, 1 + rows.shape[1]), _UP, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)),
        *((chunk[0], chunk[1]) for chunk in notes.chunks),
        (b"IDAT", zlib.compress(filtered.tobytes(), _LEVEL)),
        (b"IEND", b""),
    )
    stream = io.BytesIO()
    stream.write(_SIGNATURE)
    for kind, content in chunks:
        putchunk(stream, kind, content)
    return stream.getvalue()


def own_text(pixels: np.ndarray) -> dict[str, str]:
    """Return the text by which a picture in a file of its own is recognized by `is_own`."""
    return {"Software": "dhr-batch", "dhr-batch:pixels": _digest(pixels)}


def is_own(content: bytes) -> bool:
    """Whether a file is a picture that dhr-batch has written, with unchanged pixels."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            recorded = getattr(image, "text", {}).get("dhr-batch:pixels")
            return recorded == _digest(np.asarray(image))
    except (OSError, SyntaxError, ValueError):
        return False


def _digest(pixels: np.ndarray) -> str:
    shape = "x".join(map(str, pixels.shape)).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:32]


def edit_text(edit: EditedImage) -> dict[str, str]:
    """Return the text that is embedded in an edited picture: software, edit and strength."""
    return {
        "Software": "dhr-batch",
        "Comment": f"edited by dhr-batch: {edit.name} {edit.strength:+g}",
        "dhr-batch:edit": edit.name,
        "dhr-batch:strength": f"{edit.strength:g}",
    }


def rows_of(record: Record, shard: int, info: RunInfo) -> dict[str, list[Row]]:
    """Return all rows of one image by table.

    A failed record has a row in `quarantine` only, any other record has rows in all other tables.
    """
    if record.failure is not None:
        failure = record.failure
        tables: dict[str, list[Row]] = {
            "quarantine": [
                {
                    "source": record.source,
                    "source_bytes": record.source_bytes,
                    "source_sha256": record.source_sha256,
                    "stage": failure.stage,
                    "error_class": failure.error_class,
                    "message": failure.message,
                }
            ]
        }
    else:
        tables = {
            "images": list(_image_rows(record, info)),
            "latents": list(_latent_rows(record, info)),
            "masks": list(_mask_rows(record, info)),
            "edits": [_edit_row(edit) for edit in record.edits],
            "metrics": list(_metric_rows(record, info)),
        }
        if info.store_features:
            tables["features"] = [
                {"kind": f.kind, "extractor": f.extractor, "feature": f.vector}
                for f in record.features
            ]
        if info.deltas is not None:
            tables["deltas"] = list(_delta_rows(record, info))
    key = {"image_id": record.image_id, "shard": shard}
    return {table: [key | row for row in rows] for table, rows in tables.items()}


def _image_rows(record: Record, info: RunInfo) -> Iterator[Row]:
    width, height = record.source_size or (None, None)
    notes = (*record.notes, "random weights") if info.random_weights else record.notes
    common: Row = {
        "split": record.split,
        "source": record.source,
        "face_index": record.face_index,
        "source_width": width,
        "source_height": height,
        "source_bytes": record.source_bytes,
        "source_sha256": record.source_sha256,
        "quad": None if record.quad is None else record.quad.astype(np.float64).ravel().tolist(),
        "note": "; ".join(notes),
    }
    kinds = (("aligned", record.image), ("inverted", record.inverted), ("refined", record.refined))
    for kind, pixels in kinds:
        if pixels is not None:
            yield common | {"kind": kind} | _picture("image", record.image_id, kind, pixels)
    for edit in record.edits:
        label = edit_label(edit.name, edit.strength)
        picture = _picture("image", record.image_id, label, edit.image, edit_text(edit))
        named = {"kind": "edit", "edit_name": edit.name, "edit_strength": edit.strength}
        yield common | named | picture


def _picture(
    column: str, image_id: str, kind: str, pixels: np.ndarray, text: dict[str, str] | None = None
) -> Row:
    picture = {"bytes": png(pixels, text), "path": picture_file(image_id, kind)}
    return {column: picture, "width": pixels.shape[1], "height": pixels.shape[0]}


def _latent_rows(record: Record, info: RunInfo) -> Iterator[Row]:
    if record.latent is not None:
        equal = bool((record.latent == record.latent[:1]).all())
        space = "w" if equal else "w+"
        yield {"embedder": info.embedder, "space": space, "latent": record.latent}


def _mask_rows(record: Record, info: RunInfo) -> Iterator[Row]:
    theta = _pairs(info.thresholds)
    if record.mask is not None:
        mask = _picture("mask", record.image_id, "in_domain", record.mask.astype(bool))
        share = float(record.mask.mean())
        yield {"mask": mask["mask"], "kind": "in_domain", "theta": theta, "area_fraction": share}
    if record.labels is not None:
        labels = _picture("mask", record.image_id, "labels", record.labels.astype(np.uint8))
        yield {"mask": labels["mask"], "kind": "labels", "theta": [], "area_fraction": None}


def _edit_row(edit: EditedImage) -> Row:
    return {
        "edit": edit.name,
        "strength": edit.strength,
        "direction_sha256": edit.direction_sha256,
        "latent": edit.latent,
        "effect": _pairs(
            edit.effect
            | edit.contours
            | ({} if edit.start is None else {START + edit.name: edit.start})
        ),
    }


def _metric_rows(record: Record, info: RunInfo) -> Iterator[Row]:
    suffix = " (random weights)" if info.random_weights else ""
    for metric in record.metrics:
        yield {
            "stage": metric.stage,
            "metric": metric.metric,
            "value": metric.value,
            "model": metric.model if suffix in metric.model else metric.model + suffix,
        }


def as_stored(record: Record, info: RunInfo) -> Record:
    """Return the record with weights and feature as they will be read from its rows.

    Pictures are rendered from these, so that they can be rendered again from the tables. A small
    error would not always stay small: edits follow an optical flow, which may differ by pixels
    between renders that differ by one level.
    """
    if info.deltas is None:
        return record
    delta, feature = record.delta, record.feature
    # What is not finite is left to the stages that use it, whose failures are those of the image.
    with suppress(ValueError):
        if delta is not None:
            delta = {n: codec.rounded_weight(offset, _step(n, info)) for n, offset in delta.items()}
        if feature is not None:
            feature = codec.rounded_feature(feature, _kept(record), _step("feature", info))
    return replace(record, delta=delta, feature=feature)


def _delta_rows(record: Record, info: RunInfo) -> Iterator[Row]:
    for name, offset in (record.delta or {}).items():
        yield _delta_row(name, "weight", offset, codec.encode_weight(offset, _step(name, info)))
    feature = record.feature
    if feature is not None:
        encoded = codec.encode_feature(feature, _kept(record), _step("feature", info))
        yield _delta_row("feature", "feature", feature, encoded)
    for name, value in (record.state or {}).items():
        yield _delta_row(name, STATE, value, codec.encode_exact(value))


def _step(tensor: str, info: RunInfo) -> float:
    assert info.deltas is not None
    relative = info.deltas.feature if tensor == "feature" else info.deltas.weight
    return relative * info.magnitudes.get(tensor, 0.0)


def _kept(record: Record) -> np.ndarray:
    assert record.feature is not None
    _, height, width = record.feature.shape
    return codec.used_cells(record.mask, (height, width))


def _delta_row(name: str, kind: str, value: np.ndarray, encoded: codec.Encoded) -> Row:
    about = {"tensor": name, "kind": kind, "shape": list(value.shape), "dtype": str(value.dtype)}
    return about | encoded._asdict()


def _pairs(values: Mapping[str, float]) -> list[Row]:
    return [{"key": key, "value": float(value)} for key, value in values.items()]
