"""JPEG files with damaged pixels, which Pillow reads as other pixels without a word."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError

# Noise takes so many bytes that all changes below are within its pixels.
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8))
KINDS: dict[str, dict[str, object]] = {
    "sequential": {},
    "progressive": {"progressive": True},
    "restart marks": {"restart_marker_rows": 1},
    "not subsampled": {"subsampling": 0},
    "rgb": {"keep_rgb": True},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
}
END = b"\xff\xd9"


def encoded(kind: str) -> bytes:
    options = dict(KINDS[kind])
    stream = io.BytesIO()
    NOISE.convert(str(options.pop("mode", "RGB"))).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def cut(data: bytes) -> bytes:
    return data[: len(data) * 3 // 4] + END


def no_code(data: bytes) -> bytes:
    """Bits of one, which are no code in any table. libjpeg tells it of progressive files."""
    at = len(data) * 3 // 4
    at += data[at - 1] == 0xFF
    return data[:at] + b"\xff\0" * 4 + data[at + 8 :]


@pytest.mark.parametrize(
    ("kind", "change"), [*((kind, cut) for kind in KINDS), ("progressive", no_code)]
)
def test_pixels_that_cannot_be_decoded(kind: str, change: Callable[[bytes], bytes]) -> None:
    data = change(encoded(kind))
    with Image.open(io.BytesIO(data)) as image:
        image.load()
    with pytest.raises(ImageError, match="pixels cannot be decoded") as caught:
        decode(data)
    assert caught.value.error_class == "damaged"


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_before_the_end_mark(kind: str) -> None:
    data = encoded(kind)
    filled = data[:-2] + bytes(64) + END
    known, notes = decode(data)
    pixels, more = decode(filled)
    assert np.array_equal(pixels, known)
    assert [note for note in more if note not in notes] == [
        "JPEG with bytes that are no pixels, perhaps damaged"
    ]
