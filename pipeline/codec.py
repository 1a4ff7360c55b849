"""Lossy storage of refined weights and features: 8-bit integers with one scale per channel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SCHEME = "int8_channel"
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


class Encoded(NamedTuple):
    """A tensor as stored. scales: float32 [C]; data: int8 values in C order."""

    scales: np.ndarray
    data: bytes


def encode(tensor: np.ndarray) -> Encoded:
    """Symmetric int8 quantisation per output channel (first axis).

    tensor: floating point of any shape; tensors with fewer than two axes have a single scale,
    since one scale per element would be larger than the element. The reconstruction error is at
    most half a scale per element (plus one float32 rounding) and zeros stay exactly zero.
    Raises ValueError for NaN and infinities, which have no integer representation.
    """
    if not np.isfinite(tensor).all():
        raise ValueError("cannot encode a tensor with NaN or infinite values")
    rows = tensor.astype(np.float64).reshape(_channels(tensor.shape), -1)
    peak = np.abs(rows).max(axis=1, initial=0.0)
    # A subnormal scale has too few bits to be a step size.
    scales = np.where(peak > 0, np.maximum(peak / 127.0, _SMALLEST), 0.0).astype(np.float32)
    # Rounding up next to float32's maximum would make the peak decode to infinity.
    scales = np.where(
        scales.astype(np.float64) * 127 > _LARGEST, np.nextafter(scales, np.float32(0)), scales
    )
    divisor = np.where(scales > 0, scales, 1.0).astype(np.float64)
    levels = np.clip(np.rint(rows / divisor[:, None]), -127, 127)
    return Encoded(scales, levels.astype(np.int8).tobytes())


def decode(scales: np.ndarray, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor of `shape`: ``float32(int8) * scale``, one multiplication per element.

    Raises ValueError where the sizes disagree.
    """
    levels = np.frombuffer(data, np.int8)
    if levels.size != int(np.prod(shape)) or len(scales) != _channels(shape):
        raise ValueError(
            f"{levels.size} values and {len(scales)} scales do not make a tensor of shape {shape}"
        )
    rows = levels.reshape(_channels(shape), -1).astype(np.float32)
    return (rows * np.asarray(scales, np.float32)[:, None]).reshape(shape)


def _channels(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) > 1 else 1
