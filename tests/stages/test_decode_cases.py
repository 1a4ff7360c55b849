"""Files that were once read as other pixels, or refused though they are whole.

`CASES` names folders of files that were found so; further files of their kinds are made here.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dhr_batch.stages import decode as decoding
from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.pixels import containers
from dhr_batch.stages.pixels.refusals import FORMATS
from dhr_batch.tests.awkward import _flat_png, _png
from dhr_batch.tests.stages.written import P3_XY, as_srgb, chunk, icc, png, tiff, truth

DEEP = "16-bit samples reduced to 8 bits"
# Folder and file, the file with the same picture, the largest mean difference, a note.
CASES = [
    ("tiff16_planar", "planar16.tif", "picture.png", 0, DEEP),
    ("tiff16_planar", "planar16_deflate.tif", "picture.png", 0, DEEP),
    ("tiff16_white_is_zero", "white16.tif", "picture.png", 0, DEEP),
    ("tiff16_white_is_zero", "white8.tif", "picture.png", 0, ""),
    ("linear_profile_named_srgb", "elle_g10.png", "picture.png", 2, "elle-V2-g10.icc' converted"),
    ("linear_profile_named_srgb", "linear.png", "picture.png", 2, "'linear sRGB' converted"),
    ("png16_transparent_colour", "rgb16.png", "rgb8.png", 0.1, "transparency laid on white"),
    ("tiff_float_rgb", "float32.tif", "../../tiff16_planar/input/picture.png", 0, "from 0..1"),
    ("tiff_float_rgb", "float16.tif", "../../tiff16_planar/input/picture.png", 0, "from 0..1"),
    ("png_text_over_1mib", "ztxt.png", "ztxt_end.png", 0, ""),
    ("png_text_over_1mib", "itxt_xmp.png", "ztxt_end.png", 0, ""),
]


@pytest.mark.parametrize(("case", "file", "same", "limit", "note"), CASES)
def test_cases(shared: Path, case: str, file: str, same: str, limit: float, note: str) -> None:
    folder = shared / "cases" / case / "input"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    pixels, notes = decode((folder / file).read_bytes())
    expected, _ = decode((folder / same).read_bytes())
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(float) - expected).mean() <= limit
    assert any(note in each for each in notes) if note else notes == ()


@pytest.mark.parametrize("kind", FORMATS)
def test_case_megapixels_beyond_pillow(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`megapixels_beyond_pillow`: the limit is the setting, not one of a library."""
    with pytest.raises(ImageError, match=r"201\.6 megapixels, .*raise align\.max_megapixels"):
        decode(_png(14_200, 14_200, 8, 0, b""))
    for owner, name in ((Image, "MAX_IMAGE_PIXELS"), (decoding, "_PILLOW_LIMIT")):
        monkeypatch.setattr(owner, name, 1000)
    data = encoded(large(), kind)
    assert decode(data)[0].shape == large().shape
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.slow
def test_case_megapixels_beyond_pillow_in_full() -> None:
    large = _flat_png(14_200, 14_200)
    assert decode(large, 400)[0].shape == (14_200, 14_200, 3)


def test_what_a_library_limits_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """`megapixels_beyond_pillow`: where a limit cannot be lifted, the message has a way out."""

    def load(image: Image.Image) -> None:
        raise ValueError("Memory allocation error: Security limit exceeded")

    monkeypatch.setattr("pillow_heif.as_plugin.HeifImageFile.load", load)
    kind, message = refused(encoded(large(), "HEIF"))
    assert kind == "unsupported"
    assert "convert it" in message


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def large() -> np.ndarray:
    return truth().repeat(12, 0).repeat(12, 1)


def refused(data: bytes, **options: float) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    return caught.value.error_class, str(caught.value)


# ------------------------------------------------------------------------------------- colours


def test_gamma_and_code_points_of_png_without_a_profile() -> None:
    stored, known = large(), large()
    light = np.rint((stored / 255.0) ** 2.2 * 65535).astype(np.uint16)

    def gamma(value: int) -> bytes:
        return chunk(b"gAMA", struct.pack(">I", value))

    linear = png(light, 16, 2, gamma(100_000))
    assert np.abs(decode(linear)[0] - as_srgb(light / 65535, _srgb(), 1.0)).max() <= 1
    assert "PNG gamma 1 converted to sRGB" in decode(linear)[1]
    stated = [gamma(100_000), chunk(b"sRGB", b"\0")]
    srgb = [chunk(b"cICP", bytes([1, 13, 0, 1]))]
    for same in ([gamma(45_455)], [gamma(0)], [gamma(2**31)], stated, srgb):
        np.testing.assert_array_equal(decode(png(stored, 8, 2, *same))[0], known)
    wide, _ = decode(png(stored, 8, 2, chunk(b"cICP", bytes([12, 4, 0, 1]))))
    assert np.abs(wide - as_srgb(stored / 255, P3_XY, 2.2)).max() <= 2
    kind, message = refused(png(stored, 8, 2, chunk(b"cICP", bytes([9, 16, 0, 1]))))
    assert kind == "unsupported"
    assert "PQ" in message


def _srgb() -> tuple[tuple[float, float], ...]:
    return ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))


def test_srgb_profiles_of_any_name_change_nothing() -> None:
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "abcd".encode("utf-16-be"))
    for profile in (srgb, renamed):
        pixels, notes = decode(encoded(large(), "PNG", icc_profile=profile))
        np.testing.assert_array_equal(pixels, large())
        assert notes == ()


def test_adobe_rgb_of_cameras_without_a_profile() -> None:
    exif = b"II*\0\x08\0\0\0"
    # The directory of EXIF data at 26, and the one of the exchange of files at 44.
    for tag, kind, count, value in ((0x8769, 4, 1, 26), (0xA005, 4, 1, 44), (1, 2, 4, 0x333052)):
        exif += struct.pack("<HHHIII", 1, tag, kind, count, value, 0)
    pixels, notes = decode(encoded(large(), "PNG", exif=exif))
    known = as_srgb(large() / 255, ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256)
    assert np.abs(pixels - known).max() <= 2
    assert notes == ("Adobe RGB of the EXIF data converted to sRGB",)


def test_profile_of_jpeg_2000() -> None:
    data = encoded(large(), "JPEG2000")
    at = data.index(b"colr") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    profile = icc(P3_XY, 2.2)
    box = struct.pack(">I", 11 + len(profile)) + b"colr\2\0\0" + profile
    head = data.index(b"jp2h") - 4
    longer = int.from_bytes(data[head : head + 4], "big") + len(box) - size
    data = data[:head] + struct.pack(">I", longer) + data[head + 4 : at] + box + data[at + size :]
    assert np.abs(decode(data)[0] - as_srgb(large() / 255, P3_XY, 2.2)).max() <= 2


def test_code_points_of_avif() -> None:
    import imagecodecs

    def encode(primaries: int, transfer: int, matrix: int) -> bytes:
        stated = {"primaries": primaries, "transfer": transfer, "matrix": matrix}
        return imagecodecs.avif_encode(truth(40, 28), level=100, speed=10, numthreads=1, **stated)

    pixels, notes = decode(encode(12, 4, 6))
    assert np.abs(pixels - as_srgb(truth(40, 28) / 255, P3_XY, 2.2)).mean() < 3
    assert "primaries 12" in notes[0]
    kind, message = refused(encode(9, 18, 9))
    assert kind == "unsupported"
    assert "HLG" in message


def test_profile_of_bmp() -> None:
    height, width = large().shape[:2]
    profile, pixels = icc(P3_XY, 2.2), large()[::-1, :, ::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0) + b"DEBM" + bytes(48)
    head += struct.pack("<IIII", 4, 124 + len(pixels), len(profile), 0)
    data = b"BM" + struct.pack("<IHHI", 138 + len(pixels), 0, 0, 138) + head + pixels + profile
    assert np.abs(decode(data)[0] - as_srgb(large() / 255, P3_XY, 2.2)).max() <= 2


# ------------------------------------------------------------------------- whole and cut files


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
def test_jpeg_without_its_end_mark(options: dict[str, object]) -> None:
    data = encoded(large(), "JPEG", **options)
    whole, _ = decode(data)
    for cut in (1, 2):
        pixels, notes = decode(data[:-cut])
        np.testing.assert_array_equal(pixels, whole)
        assert notes == ("JPEG end mark missing",)
    np.testing.assert_array_equal(decode(data[:-2] + bytes(4096))[0], whole)
    for cut in (3, 4, 5, 8, 40, 400):
        assert refused(data[:-cut])[0] == "truncated", cut
        assert refused(data[:-cut] + bytes(cut))[0] == "truncated", cut


def test_what_follows_a_jpeg_does_not_matter() -> None:
    data = encoded(large(), "JPEG")
    for more in (b"\xff\xda\0\x0c", bytes(5000), b"\xff\xc0" * 50, data[:-2], b"\xff\xd8\xff\xda"):
        pixels, notes = decode(data + more)
        np.testing.assert_array_equal(pixels, decode(data)[0])
        assert notes == ()


def test_progressive_jpeg_without_its_last_scan_is_cut() -> None:
    data = encoded(large(), "JPEG", progressive=True)
    assert containers.with_end(data[:-2])
    assert not containers.with_end(data[: data.rindex(b"\xff\xda")])
    last = data.rindex(b"\xff\xda")
    assert refused(data[:last])[0] == "truncated"


def test_what_is_no_pixel_makes_no_png_unreadable() -> None:
    data = encoded(large(), "PNG")
    bomb = zlib.compress(bytes(2**26), 1)
    turned = b'<x tiff:Orientation="6"/>' + b" " * 2**21
    text = [
        chunk(b"zTXt", b"workflow\0\0" + bomb),
        chunk(b"iTXt", b"note\0\1\0\0\0" + bomb),
        chunk(b"tEXt", b"a" * 2**21),
        chunk(b"zTXt", b"odd\0\7"),
        chunk(b"tIME", b"-")[:-1] + b"?",
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
    ]
    np.testing.assert_array_equal(decode(data[:33] + b"".join(text) + data[33:])[0], large())
    assert decode(data[:-12])[1] == ()
    oriented = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(turned))
    pixels, notes = decode(data[:33] + oriented + data[33:])
    np.testing.assert_array_equal(pixels, np.rot90(large(), -1))
    assert notes == ("EXIF orientation 6 applied",)


def test_a_profile_of_more_than_a_mebibyte_is_applied() -> None:
    small = icc(P3_XY, 2.2)
    profile = struct.pack(">I", len(small) + 2**21) + small[4:] + bytes(2**21)
    expected, _ = decode(encoded(large(), "PNG", icc_profile=small))
    pixels, notes = decode(encoded(large(), "PNG", icc_profile=profile))
    np.testing.assert_array_equal(pixels, expected)
    assert "converted to sRGB" in notes[0]


# ----------------------------------------------------------------------------------- the class


def test_sound_files_that_are_not_read_are_unsupported() -> None:
    jpeg, body = encoded(large(), "JPEG"), encoded(large(), "PNG")[8:]
    frame = jpeg.index(b"\xff\xc0")
    samples = truth().astype(np.uint16)
    files = {
        "12-bit JPEG": jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :],
        "float CMYK": tiff(np.zeros((20, 28, 4), np.float32), 5),
        "colour filter": tiff(samples[..., :1], 32803),
        "volume": tiff(samples, 2, tags={32997: ("I", [3])}),
        "other inks": tiff(np.zeros((20, 28, 4), np.uint8), 5, tags={332: ("H", [2])}),
        "thumbnail": tiff(samples, 2, tags={254: ("I", [1])}),
        "packing of Apple": b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", bytes(4)) + body,
    }  # fmt: skip
    for name, data in files.items():
        kind, message = refused(data)
        assert kind == "unsupported", (name, message)
        assert "convert" in message or "save" in message, (name, message)


def test_damaged_tiff_is_told_from_cut_tiff() -> None:
    data = tiff(truth().astype(np.uint16), 2)
    assert refused(data[:-10])[0] == "truncated"
    (at,) = struct.unpack_from("<I", data, data.index(struct.pack("<HHI", 279, 4, 2)) + 8)
    assert refused(data[:at] + bytes(8) + data[at + 8 :])[0] == "damaged"
    assert refused(b"II*\0\xff\xff\0\0" + bytes(40))[0] == "damaged"


def test_pointer_of_git_lfs() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
    assert "git lfs pull" in refused(pointer)[1]


# -------------------------------------------------------------------------------------- bounds


def _gif(frames: int) -> bytes:
    data = encoded(np.zeros((16, 16), np.uint8), "GIF")
    at = data.index(b",\0\0\0\0", 13)
    return data[:-1] + data[at:-1] * (frames - 1) + b";"


def _pages(count: int) -> bytes:
    """A TIFF file whose directories after the first are empty."""
    data = bytearray(tiff(truth(), 2))
    at = 8 + 2 + 12 * struct.unpack_from("<H", data, 8)[0]
    for _ in range(count - 1):
        struct.pack_into("<I", data, at, len(data))
        at = len(data) + 2
        data += struct.pack("<HI", 0, 0)
    return bytes(data)


@pytest.mark.parametrize("make", [_gif, _pages])
@pytest.mark.parametrize(
    ("count", "words"), [(1, ""), (3, "3"), (1000, "1000"), (50_000, "more than 1000")]
)
def test_frames_are_counted_within_bounds(
    make: Callable[[int], bytes], count: int, words: str
) -> None:
    notes = decode(make(count))[1]
    assert notes == ((f"first of {words} frames taken",) if words else ())


def test_pages_in_a_circle() -> None:
    data = bytearray(_pages(2))
    data[-4:] = struct.pack("<I", 8)
    assert decode(bytes(data))[1] == ("first of 2 frames taken",)


def test_one_small_tile_of_many_samples_is_not_unpacked() -> None:
    tags = {322: ("I", [2**15]), 323: ("I", [2**15]), 324: ("I", [8]), 325: ("I", [9])}
    assert refused(tiff(truth(), 2, deflate=True, tags=tags))[0] == "unsupported"
