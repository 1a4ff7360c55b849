"""Samples as files store them, of any depth and sign, before they become sRGB of 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dhr_batch.stages.pixels import colours
from dhr_batch.stages.pixels.colours import Colours

# Pixels converted at once, so that wide temporary arrays stay small.
_BLOCK = 2**18
# How many times as bright as white a picture may be, except for single lamps.
_LAMP = 16
_LAID = "transparency laid on white"


@dataclass
class Raster:
    """Samples with one meaning.

    Attributes:
        mode: `L`, `RGB`, `CMYK`, `LAB` or `YCbCr`. The first three may have 16 bits.
        samples: uint8 or uint16 [H, W, channels].
        alpha: [H, W] of the same type, or None for opaque pixels.
        premultiplied: Whether the colours are multiplied by alpha.
    """

    mode: str
    samples: np.ndarray
    alpha: np.ndarray | None = None
    premultiplied: bool = False

    def to_srgb(self, space: Colours | None) -> tuple[np.ndarray, list[str]]:
        """Return uint8 [H, W, 3] on white, and notes on what was changed."""
        if self.mode in ("LAB", "YCbCr") and self.alpha is not None:
            # White is not the largest value of each of their channels.
            pixels, notes = Raster(self.mode, self.samples).to_srgb(space)
            pixels, more = Raster("RGB", pixels, self.alpha, self.premultiplied)._on_white()
            return pixels, notes + more
        samples, notes = self._on_white()
        if samples.dtype == np.uint16 and self.mode != "CMYK":
            pixels, more = colours.to_srgb_deep(samples, space)
            return pixels, notes + more
        if samples.dtype == np.uint16:
            samples = scaled(samples, 65535.0, np.uint8)
        size = samples.shape[1::-1]
        # `frombytes` reads LAB as TIFF stores it, with signed a and b.
        image = Image.frombytes(self.mode, size, np.ascontiguousarray(samples).tobytes())
        converted, more = colours.to_srgb(image, space)
        return np.array(converted), notes + more

    def _on_white(self) -> tuple[np.ndarray, list[str]]:
        full = np.iinfo(self.samples.dtype).max
        if self.alpha is None or self.alpha.min(initial=full) == full:
            return self.samples, []
        white = 0 if self.mode == "CMYK" else full
        result: np.ndarray = np.empty_like(self.samples)
        for rows in _blocks(self.samples):
            samples = self.samples[rows].astype(np.uint32)
            alpha = self.alpha[rows, :, None].astype(np.uint32)
            if self.premultiplied:
                blended = np.minimum(samples + white * (full - alpha) // full, full)
            else:
                # 65535 squared, with half of 65535 for rounding, just fits into 32 bits.
                blended = (samples * alpha + white * (full - alpha) + full // 2) // full
            result[rows] = blended
        return result, [_LAID]


def scaled(values: np.ndarray, white: float, kind: type, black: float = 0.0) -> np.ndarray:
    """Scale samples [H, W, ...] from black..white to the whole range of uint8 or uint16.

    What lies outside is clipped, and what is no number is taken for 0.
    """
    full = float(np.iinfo(kind).max)
    result: np.ndarray = np.empty(values.shape, kind)
    for rows in _blocks(values):
        block = np.nan_to_num(values[rows].astype(np.float64), nan=0.0, posinf=white, neginf=black)
        result[rows] = np.clip(np.rint((block - black) * (full / (white - black))), 0, full)
    return result


def integers(values: np.ndarray, bits: int) -> tuple[np.ndarray, list[str]]:
    """Scale unsigned samples of 1 to 16 bits to all of uint8 or uint16."""
    kind, full = (np.uint8, 8) if bits <= 8 else (np.uint16, 16)
    notes = [] if bits <= 8 else [f"{bits}-bit samples reduced to 8 bits"]
    if bits == full:
        if bits == 16 and values.max(initial=0) < 2**12:
            notes.append("no sample above 4095: dark, or 12 bits stored as 16")
        return values.astype(kind, copy=False), notes
    return scaled(values, 2.0**bits - 1, kind), notes


def stretched(values: np.ndarray, bits: int) -> tuple[np.ndarray, list[str]]:
    """Scale signed or wide integers and floats [H, W, channels] to uint16 (see `bounds`)."""
    (low, high), clips = bounds(values, bits)
    notes = [f"{bits}-bit samples scaled from {low:g}..{high:g}{', others clipped' * clips}"]
    if values.dtype.kind == "f" and any(np.isnan(values[rows]).any() for rows in _blocks(values)):
        notes.append("samples that are no numbers taken for 0")
    return scaled(values, max(high, low + 1e-12), np.uint16, low), notes


def bounds(values: np.ndarray, bits: int) -> tuple[tuple[float, float], bool]:
    """Return black and white of samples that have no fixed white, and whether some lie outside.

    White is the smallest usual value that fits. Unsigned integers that use more than a quarter of
    their range have all of it. Floats may exceed white: resampling puts some a little outside, and
    lamps are many times as bright. Of values below zero without a usual range, the smallest is
    black and the largest white.
    """
    low, high = _extent(values)
    full = 2.0 ** (bits - (values.dtype.kind == "i"))
    ends = (low, high)
    if values.dtype.kind == "f":
        usual = [1.0, 255.0, 65535.0]
        white = high if high in usual else next((w for w in usual if _fits(values, w)), high)
        if low >= -white / 4:
            ends = (0.0, white)
        elif max(-low, high) <= 1.5:
            ends = (-1.0, 1.0)
    elif low < 0:
        ends = (-full, full - 1) if high - low > full / 2 else ends
    else:
        usual = [255.0, full - 1 if bits <= 16 or high > full / 4 else 65535.0]
        ends = (0.0, next((min(w, full - 1) for w in usual if high <= w), high))
    return ends, low < ends[0] or high > ends[1]


def _fits(values: np.ndarray, white: float) -> bool:
    """Whether hardly any values are many times as bright as white, and most not twice."""

    def above(bound: float) -> int:
        most = np.float64(bound)
        return sum(int(np.count_nonzero(values[rows] > most)) for rows in _blocks(values))

    return above(_LAMP * white) <= values.size / 100 and above(2 * white) <= values.size / 2


def _extent(values: np.ndarray) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for rows in _blocks(values):
        block = np.nan_to_num(values[rows].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    return low, high


def _blocks(values: np.ndarray) -> Iterator[slice]:
    rows = max(1, _BLOCK // max(1, values.shape[1]))
    return (slice(start, start + rows) for start in range(0, values.shape[0], rows))
