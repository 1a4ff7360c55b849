"""JPEG 2000 files whose samples do not have 8 bits.

Pillow shifts samples of fewer bits, so that white is grey, and rounds those of more bits up past
white, which becomes black.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.pixels import containers
from dhr_batch.stages.pixels.raster import Raster, integers

# Where a codestream has the number of components and the depth of the first one.
_COMPONENTS, _DEPTHS = 40, 42
_TILE, _END = b"\xff\x90", b"\xff\xd9"
_CMYK = 12


def _codestream(data: bytes) -> memoryview:
    found = containers.boxes(data)
    return next((content for kind, content in found if kind == b"jp2c"), memoryview(data))


def _stored(data: bytes) -> list[tuple[int, bool]]:
    """Return the bits of each component, and whether it is signed."""
    code = _codestream(data)
    (count,) = struct.unpack_from(">H", code, _COMPONENTS)
    sizes = [code[_DEPTHS + 3 * number] for number in range(count)]
    return [((size & 127) + 1, size > 127) for size in sizes]


def with_end(data: bytes) -> bytes | None:
    """Return a file with its end mark, if nothing else is missing; None if it is not so."""
    code, at = _codestream(data), 2
    while at < len(code) and code[at : at + 2] != _TILE:
        at += 2 + int.from_bytes(code[at + 2 : at + 4])
    while code[at : at + 2] == _TILE:
        (size,) = struct.unpack_from(">I", code, at + 6)
        # The last tile may be of any size up to the end mark.
        at += size or len(code) + 1
    rest = bytes(code[at:])
    missing = at <= len(code) and rest in (_END[:0], _END[:1]) and code[-32:] == data[-32:]
    return data + _END[len(rest) :] if missing else None


def is_deep(data: bytes) -> bool:
    """Whether a component has more than 8 bits."""
    return max(bits for bits, _ in _stored(data)) > 8


def deep(data: bytes) -> tuple[Raster, list[str]]:
    """Decode samples of more than 8 bits, with notes.

    Raises:
        ImageError: `unsupported` for components that differ or have no known meaning.
    """
    import imagecodecs

    stored = _stored(data)
    if len(set(stored)) > 1 or not 1 <= len(stored) <= 4 or stored[0][0] > 16:
        depths = ", ".join(str(bits) for bits, _ in stored[:8])
        raise _unsupported(f"components of {depths} bits")
    bits, signed = stored[0]
    # Colours of YCbCr become RGB here.
    samples = imagecodecs.jpeg2k_decode(data)
    samples = samples[..., None] if samples.ndim == 2 else samples
    if signed:
        samples = (samples.astype(np.int32) + (1 << (bits - 1))).astype(np.uint16)
    values, notes = integers(samples, bits)
    if values.shape[2] == 4 and containers.named_space(data) == _CMYK:
        return Raster("CMYK", values), notes
    channels = values.shape[2] - 1 + values.shape[2] % 2
    alpha = values[..., channels] if channels < values.shape[2] else None
    return Raster("L" if channels == 1 else "RGB", values[..., :channels], alpha), notes


def scaled(image: Image.Image, data: bytes) -> Image.Image:
    """Scale samples of less than 8 bits, which Pillow only shifts, to all of 8 bits.

    Raises:
        ImageError: `unsupported` for a palette of such samples.
    """
    bits = [bits for bits, _ in _stored(data)]
    if min(bits) >= 8:
        return image
    if len(bits) != len(image.getbands()) or image.mode == "P":
        raise _unsupported("a palette and less than 8 bits")
    full = [((1 << depth) - 1) << (8 - depth) if depth < 8 else 255 for depth in bits]
    return image.point([min(255, round(v * 255 / most)) for most in full for v in range(256)])


def _unsupported(what: str) -> ImageError:
    return ImageError("unsupported", f"JPEG 2000 files with {what} are not read; convert it to PNG")
