"""HEIF files, of which phones make photographs: pixels against formulas, damage, bounds."""

from __future__ import annotations

import re
import struct
from functools import cache
from itertools import product

import numpy as np
import pytest

from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError
from dhr_batch.tests.stages import heif_files
from dhr_batch.tests.stages.heif_files import Coded, coded, full, heif, mirrored, nclx, rotated
from dhr_batch.tests.stages.written import P3_XY, as_srgb, icc, truth

TURNED = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x112, 3, 1, 6, 0, 0)


# HEVC codes blocks of this size.
PIXELS = truth(16, 24).repeat(4, 0).repeat(4, 1)


@cache
def bare() -> Coded:
    return coded(PIXELS)


def picture(*properties: bytes, colours: bytes = nclx(1, 13)) -> Coded:
    return Coded([*bare().properties, colours, *properties], bare().data)


def assert_decoded(data: bytes, expected: np.ndarray, limit: float = 2) -> tuple[str, ...]:
    pixels, notes = decode(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected.astype(float)).max() <= limit
    return notes


def refused(data: bytes, **options: float) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    return caught.value.error_class, str(caught.value)


@pytest.mark.parametrize(("quarters", "axis"), [*product(range(4), (None, 0, 1))])
@pytest.mark.parametrize("exif", [b"", TURNED])
def test_the_orientation_is_that_of_the_container_once(
    quarters: int, axis: int | None, exif: bytes
) -> None:
    """EXIF repeats the orientation in files of phones, and contradicts it in edited ones."""
    upright = np.rot90(PIXELS, quarters)
    properties = [rotated(quarters)] if quarters else []
    if axis is not None:
        upright = upright[::-1] if axis == 0 else upright[:, ::-1]
        properties.append(mirrored(axis))
    assert assert_decoded(heif([picture(*properties)], exif=exif), upright) == ()


def test_properties_apply_in_their_order() -> None:
    upright = np.rot90(PIXELS[::-1], 1)
    assert_decoded(heif([picture(mirrored(0), rotated(1))]), upright)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_brands(brand: bytes) -> None:
    assert_decoded(heif([picture()], brand=brand), PIXELS)


def test_colours_are_those_of_the_main_picture() -> None:
    wide = as_srgb(PIXELS / 255, P3_XY, 2.2)
    assert np.abs(wide - PIXELS).max() > 30
    p3, srgb = picture(colours=nclx(12, 4)), picture()
    assert_decoded(heif([srgb]), PIXELS)
    assert "primaries 12" in assert_decoded(heif([p3]), wide, 8)[0]
    several = "main one of 2 pictures taken"
    assert assert_decoded(heif([p3, srgb], primary=1), PIXELS) == (several,)
    assert assert_decoded(heif([srgb, p3], primary=1), wide, 8)[1:] == (several,)
    profile = heif_files.box(b"colr", b"prof", icc(P3_XY, 2.2))
    assert "ICC profile" in assert_decoded(heif([picture(profile)]), wide, 8)[0]
    kind, message = refused(heif([picture(colours=nclx(9, 16))]))
    assert kind == "unsupported"
    assert "PQ" in message


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_samples_of_10_bits(channels: int) -> None:
    """Rounded, where libheif cuts off; and a profile is applied before that."""
    y, x = np.mgrid[:40, :56]
    levels = np.stack([200 + 12 * x, 1000 - 12 * x - 4 * y, 220 + 8 * x + 5 * y, 18 * x], -1)
    levels = levels[..., :channels]
    notes = ("10-bit samples reduced to 8 bits",)
    whole = levels[..., :3].repeat(3, 2) if channels == 1 else levels[..., :3]
    known = whole / 1023 * 255
    if channels == 4:
        alpha = levels[..., 3:] / 1023
        known, notes = known * alpha + 255 * (1 - alpha), (*notes, "transparency laid on white")
    data = heif_files.written((levels << 6).astype(np.uint16))
    assert assert_decoded(data, known, 1.1) == notes
    if channels == 3:
        difference = decode(data)[0] - known
        assert abs(difference.mean()) < 0.05
        data = heif_files.written((levels << 6).astype(np.uint16), icc_profile=icc(P3_XY, 2.2))
        assert_decoded(data, as_srgb(levels / 1023, P3_XY, 2.2), 4)


def test_tiles_as_phones_write_them() -> None:
    pixels = truth(25, 38).repeat(4, 0).repeat(4, 1)
    data = heif_files.written(pixels, tile_size=64)
    assert b"grid" in data
    assert assert_decoded(data, pixels) == ()


def test_the_size_is_checked_before_pixels_are_decoded() -> None:
    def sized(width: int, height: int) -> bytes:
        lie = full(b"ispe", struct.pack(">II", width, height))
        return heif([Coded([bare().properties[0], lie], bare().data)])

    assert refused(sized(20_000, 20_000))[0] == "too_large"
    assert refused(sized(8, 8))[0] == "too_small"
    assert refused(heif([picture()]), max_megapixels=0.002)[0] == "too_large"
    # A picture that is larger than its header says is not decoded.
    assert refused(sized(20, 20))[0] in ("unsupported", "damaged")


def test_damaged_and_unread_files() -> None:
    data = heif([picture()])
    assert refused(data[:-20])[0] == "truncated"
    kind, message = refused(data[:200])
    assert kind == "damaged"
    assert re.search(r"begins like HEIF, but .*: .*\(", message)
    for codec in (b"vvc1", b"jpeg", b"av01"):
        kind, message = refused(heif([picture()], kind=codec))
        assert kind in ("unsupported", "damaged"), (codec, message)
