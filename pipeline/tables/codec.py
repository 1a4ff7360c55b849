"""Compression of refined weights, features and states. The format is described
in docs/reference/deltas.md.

A value x is stored as the integer code ``q = round(x / step)``, so it is restored with an error of
at most ``step / 2``. Weights are dithered: ``q_i = round(x_i / step + d_i)`` is restored as
``(q_i - d_i) * step``, with fixed pseudo-random ``d_i`` in [-1/2, 1/2). Then the error does not
depend on the signal (subtractive dither; Schuchman, "Dither Signals and Their Effect on
Quantization Noise", 1964). Features are predicted: the code of a cell is stored as its difference
to the mean of the codes on the left and above, as in image coders (DPCM). The codes are packed into
bytes that the zstd compression of a Parquet column reduces to about their entropy. What a refiner
stores beyond weights and a feature is kept exactly (`exact`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

_TINY = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


class Steps(NamedTuple):
    """Quantization steps, relative to the published generator (`Generator.magnitudes`).

    Attributes:
        weight: Step of an offset, divided by the Euclidean norm of the weight it is added to.
        feature: Step of a feature, divided by the root mean square of the published feature.
    """

    weight: float
    feature: float


LEVELS = {"small": Steps(3e-5, 0.075), "fine": Steps(1e-5, 0.025)}
# The offset of two-byte codes, at which codes near 0 have the same high byte.
_WIDE = 0x8080
# Smaller tensors get a finer step. They take little space, and belong to small kernels and image
# heads, which have a strong effect on the image.
_SMALL_SIZE = 2**14


class Encoded(NamedTuple):
    """A compressed tensor: columns of a row of the table `deltas`.

    Attributes:
        scheme: `dithered`, `predicted`, `exact`, or `int8_channel` in runs of older versions.
        scales: The step, float32 [1]; for `int8_channel` one per channel; for `exact` none.
        data: The packed codes; for `exact` the values, little-endian.
        base: The base of the digits in `data`.
        cells: One bit for each cell of a feature, row by row: whether the cell is stored.
    """

    scheme: str
    scales: np.ndarray
    data: bytes
    base: int | None = None
    cells: bytes | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Encoded:
        """Read a row of the table `deltas`. Rows of older versions have neither base nor cells."""
        return cls(row["scheme"], row["scales"], row["data"], row.get("base"), row.get("cells"))


def encode_weight(offset: np.ndarray, step: float) -> Encoded:
    """Compress the offset of a weight with the scheme `dithered`.

    Without dither, an offset below half a step would be rounded to 0 everywhere, which changes the
    image. With dither, the error is noise. A tensor of zeros is restored exactly.

    Args:
        offset: Any shape.
        step: The quantization step. A quarter of it is used for fewer than 2**14 values, and a
            larger one if the codes would not fit into 16 bits otherwise.

    Raises:
        ValueError: If a value is NaN or infinite.

    >>> offset = np.array([0.5, -0.25, 0.001], np.float32)
    >>> encoded = encode_weight(offset, step=0.04)
    >>> bool(np.abs(decode(encoded, offset.shape) - offset).max() <= encoded.scales[0] / 2)
    True
    """
    codes, _, step = _weight_codes(offset, step)
    return Encoded("dithered", np.array([step], np.float32), *_packed(codes))


def rounded_weight(offset: np.ndarray, step: float) -> np.ndarray:
    """Return what `decode` restores of an offset that `encode_weight` has compressed."""
    codes, dither, step = _weight_codes(offset, step)
    return _values(codes - dither, step, offset.shape)


def _weight_codes(offset: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the codes of an offset, the dither that they contain, and the step."""
    values = _finite(offset)
    dither = _dither(values.size)
    if not values.any():
        return values, dither, 0.0
    step = _fitting_step(values, step / 4 if values.size < _SMALL_SIZE else step, 32000)
    # In place: large temporary arrays would take most of the time.
    values /= step
    values += dither
    return np.rint(values, out=values), dither, step


def encode_feature(feature: np.ndarray, kept: np.ndarray, step: float) -> Encoded:
    """Compress a feature with the scheme `predicted`.

    A code is predicted by the mean of the codes on the left and above, if both cells are kept, by
    the one that is kept, or by 0.

    Args:
        feature: [C, h, w].
        kept: bool [h, w], the cells to store (see `used_cells`). All others are restored as 0.
        step: The quantization step. A larger one is used if the codes would not fit into 16 bits.

    Raises:
        ValueError: If a value is NaN or infinite.
    """
    codes, step = _feature_codes(feature, kept, step)
    left, up = _shifted(codes, 2), _shifted(codes, 1)
    both = _shifted(kept, 1) & _shifted(kept, 0)
    packed = _packed((codes - ((left + up + both) >> both))[:, kept].ravel())
    cells = np.packbits(kept).tobytes()
    return Encoded("predicted", np.array([step], np.float32), *packed, cells)


def rounded_feature(feature: np.ndarray, kept: np.ndarray, step: float) -> np.ndarray:
    """Return what `decode` restores of a feature that `encode_feature` has compressed."""
    return _values(*_feature_codes(feature, kept, step), feature.shape)


def _feature_codes(feature: np.ndarray, kept: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    values = _finite(feature).reshape(feature.shape)
    step = _fitting_step(values, step, 16000)
    return np.where(kept, np.rint(values / step), 0).astype(np.int64), step


def encode_exact(values: np.ndarray) -> Encoded:
    """Store an array of numbers without loss, with the scheme `exact`."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return Encoded("exact", np.zeros(0, np.float32), little.tobytes())


def decode(encoded: Encoded, shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Restore a compressed tensor.

    The scheme `int8_channel` of older runs is ``x = q * scale`` with one scale per channel.

    Args:
        encoded: The compressed tensor.
        shape: The shape of the tensor.
        dtype: The type of the values of `exact`.

    Returns:
        An array of this shape, float32 except for `exact`.

    Raises:
        ValueError: If the scheme is unknown, scales or base are missing, or sizes do not match.
    """
    scheme, scales, data, base, cells = encoded
    if scheme == "exact":
        values = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
        _check(values.size, shape)
        return values.astype(dtype).reshape(shape)
    if scheme in ("dithered", "predicted", "int8_channel") and len(scales) == 0:
        raise ValueError(f"damaged row: scheme {scheme!r} without scales")
    if scheme == "int8_channel":
        levels = np.frombuffer(data, np.int8)
        _check(levels.size, shape)
        rows = levels.reshape(len(scales), -1).astype(np.float32)
        return (rows * np.asarray(scales, np.float32)[:, None]).reshape(shape)
    if scheme not in ("dithered", "predicted"):
        raise ValueError(
            f"unknown scheme {scheme!r}: a newer version of dhr-batch is needed to read it"
        )
    if base is None or base < 3:
        raise ValueError(f"damaged row: scheme {scheme!r} with base {base}")
    step = float(np.float32(scales[0]))
    if scheme == "dithered":
        count = math.prod(shape)
        values = _unpacked(data, base, count) - _dither(count)
    else:
        values = _restored(data, base, cells or b"", shape)
    return _values(values, step, shape)


def used_cells(mask: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """Return the cells of a feature that affect the image: those not completely in-domain.

    Args:
        mask: The in-domain mask, bool [H, W], or None.
        size: Height and width (h, w) of the feature.

    Returns:
        bool [h, w]. All cells are True if there is no mask, or if its size is not a multiple of
        that of the feature.
    """
    if mask is None or mask.shape[0] % size[0] or mask.shape[1] % size[1]:
        return np.ones(size, bool)
    blocks = mask.reshape(size[0], mask.shape[0] // size[0], size[1], -1)
    return np.logical_not(blocks.all((1, 3)))


def _finite(tensor: np.ndarray) -> np.ndarray:
    if not np.isfinite(tensor).all():
        raise ValueError("cannot encode a tensor with NaN or infinite values")
    return tensor.astype(np.float64).ravel()


def _values(codes: np.ndarray, step: float, shape: tuple[int, ...]) -> np.ndarray:
    values = codes * step
    return np.clip(values, -_LARGEST, _LARGEST, out=values).astype(np.float32).reshape(shape)


def _fitting_step(values: np.ndarray, step: float, max_code: int) -> float:
    """Return a step, rounded to float32, at which no code exceeds `max_code`."""
    peak = float(max(values.max(initial=0.0), -values.min(initial=0.0)))
    return float(np.float32(max(step, peak / max_code, _TINY)))


def _dither(count: int) -> np.ndarray:
    """Return pseudo-random numbers in [-1/2, 1/2).

    They are a hash of the index (the finalizer of MurmurHash3, shortened), so that readers in any
    language can compute them.
    """
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    dither = x / 2**32
    dither -= 0.5
    return dither


def _shifted(grid: np.ndarray, axis: int) -> np.ndarray:
    """Return the value of the preceding neighbour of each cell along an axis, 0 at the border."""
    shifted = np.roll(grid, 1, axis)
    shifted[(slice(None),) * axis + (0,)] = 0
    return shifted


def _restored(data: bytes, base: int, cells: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Return the codes of a feature, int64 [C, h, w], from differences to their predictions."""
    channels, height, width = shape
    kept = np.unpackbits(np.frombuffer(cells, np.uint8), count=height * width).astype(bool)
    places = np.argwhere(kept.reshape(height, width))
    differences = _unpacked(data, base, channels * len(places)).reshape(channels, -1)
    # A row of zeros above and a column on the left, so that every cell has both neighbours.
    grid = np.zeros((height + 1, width + 1, channels), np.int64)
    padded = np.pad(kept.reshape(height, width), ((1, 0), (1, 0)))
    for (y, x), difference in zip(places, differences.T, strict=True):
        both = int(padded[y + 1, x] and padded[y, x + 1])
        grid[y + 1, x + 1] = difference + ((grid[y + 1, x] + grid[y, x + 1] + both) >> both)
    return grid[1:, 1:].transpose(2, 0, 1)


def _digits_per_byte(base: int) -> int:
    """Return how many digits of an odd base of at least 3 fit into a byte."""
    return int(math.log(256.5, base))


def _packed(codes: np.ndarray) -> tuple[bytes, int]:
    """Pack integer codes into bytes. Returns the bytes and the base of the digits.

    A code q of magnitude at most m is the digit ``q + m`` of base ``2 m + 1``. As many digits as
    fit share a byte, the first one in the lowest place, because zstd needs at least one bit per
    byte. Digits that do not fit into a byte take two: first all low bytes, then all high bytes.
    """
    largest = max(1, int(np.abs(codes).max(initial=0)))
    largest = largest if largest < 128 else _WIDE
    base, digits = 2 * largest + 1, codes.astype(np.int64) + largest
    if base > 256:
        return digits.astype("<u2").view(np.uint8).reshape(-1, 2).T.tobytes(), base
    n = _digits_per_byte(base)
    digits = np.pad(digits, (0, -len(digits) % n)).reshape(-1, n)
    return (digits @ base ** np.arange(n)).astype(np.uint8).tobytes(), base


def _unpacked(data: bytes, base: int, count: int) -> np.ndarray:
    """Return the codes that `_packed` has packed."""
    values = np.frombuffer(data, np.uint8).astype(np.int64)
    if base > 256:
        digits = values.reshape(2, -1)[0] + 256 * values.reshape(2, -1)[1]
    else:
        n = _digits_per_byte(base)
        digits = (values[:, None] // base ** np.arange(n) % base).ravel()
        digits = digits[:count] if digits.size - count < n else digits
    _check(digits.size, (count,))
    return digits - base // 2


def _check(size: int, shape: tuple[int, ...]) -> None:
    if size != math.prod(shape):
        raise ValueError(f"{size} values do not fit a tensor of shape {shape}")
