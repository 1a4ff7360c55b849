"""Decode pictures for a report, overlay masks, and compute the in-domain share of the face."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from dhr_batch.pipeline.errors import CommandError
from dhr_batch.stages.networks.parsers.face_parts import FACE_CLASSES


def decode(data: bytes, what: str) -> Image.Image:
    """Decode a picture of a table.

    Args:
        data: The encoded picture.
        what: Name of the picture, for messages.

    Raises:
        CommandError: If the picture cannot be decoded.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise CommandError(
            what, f"it is not a readable picture: {error}", "check the run with: dhr-batch verify"
        ) from error
    return image


def overlay(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Tint the out-of-domain part of a picture and draw a white border around it."""
    size = image.size
    inside = np.asarray(mask.convert("L").resize(size, Image.Resampling.NEAREST)) > 0
    pixels = np.asarray(image.convert("RGB"), np.float32)
    grey = pixels.mean(-1, keepdims=True)
    tinted = 0.45 * grey + 0.55 * np.array([226.0, 61.0, 128.0], np.float32)
    result = np.where(inside[..., None], pixels, tinted)
    border = np.zeros_like(inside)
    border[1:] |= inside[1:] != inside[:-1]
    border[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    result[border] = 255
    return Image.fromarray(result.round().astype(np.uint8))


def face_share(mask: Image.Image, labels: Image.Image) -> float | None:
    """Return the in-domain share of the face.

    The face consists of the pixels with the labels of skin, brows, eyes, nose or mouth.

    Returns:
        A value from 0 to 1, or None if no pixel has such a label.
    """
    if labels.mode not in ("L", "P"):
        labels = labels.convert("L")
    face = np.isin(np.asarray(labels), FACE_CLASSES)
    if not face.any():
        return None
    inside = np.asarray(mask.convert("L").resize(labels.size, Image.Resampling.NEAREST)) > 0
    return float(inside[face].mean())
