"""Lossy storage of refined weights and features. docs/deltas.md is the format, with a reader.

Values are rounded to multiples of a step. The multiples are small integers, written as digits that
the zstd of a Parquet column shrinks to about their entropy. Every value that is kept comes back
within half a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_TINY = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


class Steps(NamedTuple):
    """How coarsely is stored, relative to the published generator (`Generator.magnitudes`).

    weight: step of an offset, in Euclidean norms of the whole weight that it is added to.
    feature: step of a feature, in root mean squares of the published feature.
    """

    weight: float
    feature: float


LEVELS = {"small": Steps(3e-5, 0.075), "fine": Steps(1e-5, 0.025)}
# Added to codes of two bytes, so that all codes next to 0 have the same high byte.
_WIDE = 0x8080
# Few values cost little at any step, and those of small kernels and image heads count for more.
_FEW = 2**14


class Encoded(NamedTuple):
    """A tensor as stored.

    scales: float32 [1], the step; of `int8_channel` one per channel. base: of the digits in
    `data`. cells: bits of the cells of a feature that are kept, row by row.
    """

    scheme: str
    scales: np.ndarray
    data: bytes
    base: int | None = None
    cells: bytes | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Encoded:
        """What a row of the table `deltas` holds. Older ones have neither base nor cells."""
        return cls(row["scheme"], row["scales"], row["data"], row.get("base"), row.get("cells"))


def encode_weight(offset: np.ndarray, wanted: float) -> Encoded:
    """`dithered`: the integer next to ``offset / step + dither``, the dither being fixed numbers.

    wanted: the step; it is a quarter of that for fewer than 2**14 values, and as large as 16 bits
    demand. Plain rounding of offsets below a step would leave the offset itself as the error,
    which moves the image; with a dither that the reader takes off again the error is noise.
    A tensor of zeros comes back as zeros. Raises ValueError for NaN and infinities.
    """
    values = _finite(offset)
    if not values.any():
        return Encoded("dithered", np.zeros(1, np.float32), *_packed(values))
    step = _step(values, wanted / 4 if values.size < _FEW else wanted, 32000)
    codes = np.rint(values / step + _dither(values.size))
    return Encoded("dithered", np.array([step], np.float32), *_packed(codes))


def encode_feature(feature: np.ndarray, kept: np.ndarray, wanted: float) -> Encoded:
    """`predicted`: integers next to ``feature / step``, minus the mean of the neighbours before.

    feature: [C, h, w]. kept: bool [h, w], the cells that are stored (see `used_cells`); all others
    come back as 0. Neighbours are the kept ones to the left and above. wanted: the step.
    Raises ValueError for NaN and infinities.
    """
    values = _finite(feature).reshape(feature.shape)
    step = _step(values, wanted, 16000)
    codes = np.where(kept, np.rint(values / step), 0).astype(np.int64)
    left, up = _before(codes, 2), _before(codes, 1)
    both = _before(kept, 1) & _before(kept, 0)
    packed = _packed((codes - ((left + up + both) >> both))[:, kept].ravel())
    cells = np.packbits(kept).tobytes()
    return Encoded("predicted", np.array([step], np.float32), *packed, cells)


def decode(encoded: Encoded, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor of `shape`.

    Reads `int8_channel` as well, the scheme of older runs: ``int8 * scale of its channel``.
    Raises ValueError for an unknown scheme, missing scales or base, and sizes that disagree.
    """
    scheme, scales, data, base, cells = encoded
    if scheme in ("dithered", "predicted", "int8_channel") and len(scales) == 0:
        raise ValueError(f"damaged row: scheme {scheme!r} without scales")
    if scheme == "int8_channel":
        levels = np.frombuffer(data, np.int8)
        _check(levels.size, shape)
        rows = levels.reshape(len(scales), -1).astype(np.float32)
        return (rows * np.asarray(scales, np.float32)[:, None]).reshape(shape)
    if scheme not in ("dithered", "predicted"):
        raise ValueError(f"unknown scheme {scheme!r}: it takes a newer dhr-batch to read it")
    if base is None or base < 3:
        raise ValueError(f"damaged row: scheme {scheme!r} with base {base}")
    step = float(np.float32(scales[0]))
    if scheme == "dithered":
        count = math.prod(shape)
        values = _unpacked(data, base, count) - _dither(count)
    else:
        values = _restored(data, base, cells or b"", shape)
    return np.clip(values * step, -_LARGEST, _LARGEST).astype(np.float32).reshape(shape)


def used_cells(mask: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """Cells [h, w] of a feature that reach the image: those that are not wholly in-domain.

    mask: in-domain, bool [H, W]. All cells without a mask, or where its size is no multiple.
    """
    if mask is None or mask.shape[0] % size[0] or mask.shape[1] % size[1]:
        return np.ones(size, bool)
    blocks = mask.reshape(size[0], mask.shape[0] // size[0], size[1], -1)
    return np.logical_not(blocks.all((1, 3)))


def _finite(tensor: np.ndarray) -> np.ndarray:
    if not np.isfinite(tensor).all():
        raise ValueError("cannot encode a tensor with NaN or infinite values")
    return tensor.astype(np.float64).ravel()


def _step(values: np.ndarray, wanted: float, most: int) -> float:
    """The step as it will be read, large enough for codes of at most `most`."""
    peak = float(np.abs(values).max(initial=0.0))
    return float(np.float32(max(wanted, peak / most, _TINY)))


def _dither(count: int) -> np.ndarray:
    """Numbers in [-1/2, 1/2) that look random: a hash of the index, the same in any language."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    return x / 2**32 - 0.5


def _before(grid: np.ndarray, axis: int) -> np.ndarray:
    """The values of the neighbours before along an axis; 0 where there are none."""
    moved = np.roll(grid, 1, axis)
    moved[(slice(None),) * axis + (0,)] = 0
    return moved


def _restored(data: bytes, base: int, cells: bytes, shape: tuple[int, ...]) -> np.ndarray:
    channels, height, width = shape
    kept = np.unpackbits(np.frombuffer(cells, np.uint8), count=height * width).astype(bool)
    places = np.argwhere(kept.reshape(height, width))
    differences = _unpacked(data, base, channels * len(places)).reshape(channels, -1)
    # An empty row and column before the first, so that every cell has its neighbours.
    grid = np.zeros((height + 1, width + 1, channels), np.int64)
    there = np.pad(kept.reshape(height, width), ((1, 0), (1, 0)))
    for (y, x), difference in zip(places, differences.T, strict=True):
        both = int(there[y + 1, x] and there[y, x + 1])
        grid[y + 1, x + 1] = difference + ((grid[y + 1, x] + grid[y, x + 1] + both) >> both)
    return grid[1:, 1:].transpose(2, 0, 1)


def _per_byte(base: int) -> int:
    """Digits of an odd base, at least 3, that fit a byte."""
    return int(math.log(256.5, base))


def _packed(codes: np.ndarray) -> tuple[bytes, int]:
    """Integers as digits: bytes and their base.

    A digit is a code plus the largest magnitude. As many as fit share a byte, the first one lowest,
    since zstd spends at least a bit per byte; where none fits, low bytes come before high bytes.
    """
    most = max(1, int(np.abs(codes).max(initial=0)))
    most = most if most < 128 else _WIDE
    base, digits = 2 * most + 1, codes.astype(np.int64) + most
    if base > 256:
        return digits.astype("<u2").view(np.uint8).reshape(-1, 2).T.tobytes(), base
    per = _per_byte(base)
    digits = np.pad(digits, (0, -len(digits) % per)).reshape(-1, per)
    return (digits @ base ** np.arange(per)).astype(np.uint8).tobytes(), base


def _unpacked(data: bytes, base: int, count: int) -> np.ndarray:
    """The codes of `_packed`."""
    whole = np.frombuffer(data, np.uint8).astype(np.int64)
    if base > 256:
        digits = whole.reshape(2, -1)[0] + 256 * whole.reshape(2, -1)[1]
    else:
        per = _per_byte(base)
        digits = (whole[:, None] // base ** np.arange(per) % base).ravel()
        digits = digits[:count] if digits.size - count < per else digits
    _check(digits.size, (count,))
    return digits - base // 2


def _check(values: int, shape: tuple[int, ...]) -> None:
    if values != math.prod(shape):
        raise ValueError(f"{values} values do not make a tensor of shape {shape}")
