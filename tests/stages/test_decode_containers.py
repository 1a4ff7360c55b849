"""What files say beside their samples: colours, alpha, thumbnails, depths and checksums."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError
from dhr_batch.tests.stages.written import (
    P3_XY,
    WHITE_XY,
    as_srgb,
    chunk,
    from_light,
    grey_icc,
    icc,
    png,
    tiff,
    truth,
)

LEVELS = truth(12, 16).repeat(4, 0).repeat(4, 1)
GREY = LEVELS[..., 1:2]
WHOLE_GREY = GREY.repeat(3, 2)
RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))[..., None]
ALPHA = RAMP / 255
WIDE = as_srgb(LEVELS / 255, P3_XY, 2.2)
LINEAR_GREY = from_light(WHOLE_GREY / 255) * 255
ADOBE_XY = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
LAID = "transparency laid on white"


def laid(pixels: np.ndarray) -> np.ndarray:
    return pixels * ALPHA + 255 * (1 - ALPHA)


def both(*channels: np.ndarray) -> np.ndarray:
    return np.concatenate(channels, 2)


def pillow(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpeg_with(*segments: bytes) -> bytes:
    data = pillow(Image.fromarray(LEVELS), "JPEG", quality=98, subsampling=0)
    parts = (b"\xff\xe2" + struct.pack(">H", len(one) + 2) + one for one in segments)
    return data[:2] + b"".join(parts) + data[2:]


def jpeg_of(pixels: np.ndarray, segment: bytes) -> bytes:
    data = pillow(Image.fromarray(pixels), "JPEG", quality=98, subsampling=0)
    return data[:2] + segment + data[2:]


def without_adobe(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4]) :]


def without_meaning(samples: np.ndarray) -> bytes:
    entry = struct.pack("<HHI", 262, 3, 1)
    return tiff(samples, 2 if samples.shape[2] == 3 else 1).replace(entry, b"\xff\xff" + entry[2:])


def gif_in(grey: np.ndarray, width: int, height: int) -> bytes:
    """A GIF file whose only frame lies in the middle of a larger picture."""
    data = bytearray(pillow(Image.fromarray(grey), "GIF"))
    table = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    struct.pack_into("<HH", data, 6, width, height)
    edges = (width - grey.shape[1]) // 2, (height - grey.shape[0]) // 2
    struct.pack_into("<HH", data, data.index(b",", table) + 1, *edges)
    return bytes(data)


def packed_profile(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"a\0\0" + zlib.compress(profile))


def pages(*specs: tuple[np.ndarray, dict]) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for samples, options in specs:
            writer.write(samples, **options)
    return stream.getvalue()


def with_pixels_first(first: bytes) -> bytes:
    """A TIFF file as libtiff writes it, with its directory at the end and other bytes before it."""
    data = tiff(LEVELS, 2)
    end = 8 + 2 + 12 * int.from_bytes(data[8:10], "little") + 4
    return data[:4] + struct.pack("<I", len(data)) + first + data[8 + len(first) :] + data[8:end]


def cr2() -> bytes:
    """A raw photograph of Canon, up to its preview."""
    data = tiff(LEVELS, 2, tags={200: ("I", [0, 0])})
    end = 8 + 2 + 12 * int.from_bytes(data[8:10], "little") + 4
    return b"II*\0\x10\0\0\0CR\2\0" + bytes(4) + data[8:end] + data[end + 8 :]


def with_exif_of_adobe() -> bytes:
    """A TIFF file with a directory of EXIF data at its end."""
    data = bytearray(tiff(LEVELS, 2, tags={34665: ("I", [0])}))
    data += bytes(len(data) % 2)
    struct.pack_into("<I", data, data.index(struct.pack("<HHI", 34665, 4, 1)) + 8, len(data))
    return bytes(data) + struct.pack("<HHHII", 1, 0xA001, 3, 1, 2) + bytes(4)


def exif_of(space: int, index: str = "") -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = 1
    exif.get_ifd(0x8769)[0xA001] = space
    if index:
        exif.get_ifd(0x8769)[0xA005] = {1: index}
    return exif


def with_chunk(data: bytes, more: bytes) -> bytes:
    """A PNG file with a chunk behind its header."""
    return data[:33] + more + data[33:]


def bmp(samples: np.ndarray, more: bytes) -> bytes:
    """A file with a header of version 4, of which `more` is what follows the masks."""
    height, width, channels = samples.shape
    pixels = samples[::-1].tobytes()
    head = struct.pack(
        "<IiiHHIIiiII", 108, width, height, 1, 8 * channels, 3 * (channels == 4), 0, 0, 0, 0, 0
    )
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + more
    return b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122) + head + pixels


def calibrated(gamma: float) -> bytes:
    ends = [round(v * 2**30) for x, y in P3_XY for v in (x, y, 1 - x - y)]
    return bytes(4) + struct.pack("<9i3I", *ends, *[round(gamma * 2**16)] * 3)


def stated(primaries: tuple[tuple[float, float], ...]) -> list[int]:
    return [round(v * 1e5) for xy in (WHITE_XY, *primaries) for v in xy]


PROFILE = icc(P3_XY, 2.2)
INK = Image.frombytes("CMYK", (64, 48), both(255 - LEVELS, GREY * 0).tobytes())
PALETTE = np.random.default_rng(2).integers(0, 256, (256, 3))
COLOUR_MAP = {320: ("H", (PALETTE * 257).T.ravel().tolist()), 338: ("H", [2])}
SMALL = np.ascontiguousarray(255 - LEVELS[::2, ::2])
THUMBNAIL = {"photometric": "rgb", "subfiletype": 1}
JPEG = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 98}}
XMP = b'<x tiff:Orientation="6"/>'
YCBCR = np.asarray(Image.fromarray(LEVELS).convert("YCbCr"))
CASES: dict[str, tuple[Callable[[], bytes], np.ndarray, float, tuple[str, ...]]] = {
    "a profile that is there twice": (
        lambda: jpeg_with(*[b"ICC_PROFILE\0\1\1" + PROFILE] * 2), WIDE, 12,
        ("ICC profile 'sRGB of a test' converted to sRGB",),
    ),
    "pixels that begin as a raw photograph does": (
        lambda: with_pixels_first(b"CR\2\0"), LEVELS, 0, (),
    ),
    "an orientation that is a byte": (
        lambda: tiff(np.ascontiguousarray(np.rot90(LEVELS)), 2, tags={274: ("B", [6])}), LEVELS, 0,
        ("EXIF orientation 6 applied",),
    ),
    "an orientation that is a byte, in JPEG": (
        lambda: jpeg_of(np.rot90(LEVELS), b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\1"
                        + struct.pack(">HHI4BI", 274, 1, 1, 6, 0, 0, 0, 0)), LEVELS, 9,
        ("EXIF orientation 6 applied",),
    ),
    "CMYK without the mark of Adobe": (
        lambda: without_adobe(pillow(INK, "JPEG", quality=98)), LEVELS, 9,
        ("CMYK without Adobe's mark read as inverted, as Adobe writes it",),
    ),
    "a first frame that is smaller than the picture": (
        lambda: gif_in(LEVELS[..., 0], 80, 60), np.pad(
            LEVELS[..., :1].repeat(3, 2), ((6, 6), (8, 8), (0, 0)), constant_values=255), 0,
        ("first frame smaller than the picture, which is white around it",),
    ),
    "colours of TIFF that are called grey": (
        lambda: tiff(LEVELS.astype(np.uint16) * 257, 1, tags={338: ("H", [0, 0])}), LEVELS, 0,
        ("TIFF of 3 grey channels taken for colours", "16-bit samples reduced to 8 bits"),
    ),
    "colours of TIFF without a meaning": (
        lambda: without_meaning(LEVELS), LEVELS, 0, ("TIFF without the meaning of its samples",),
    ),
    "grey of TIFF without a meaning": (
        lambda: without_meaning(GREY), WHOLE_GREY, 0, ("TIFF without the meaning of its samples",),
    ),
    "colours of PFM": (
        lambda: b"PF\n64 48\n-1.0\n" + (LEVELS[::-1] / 255).astype("<f4").tobytes(), LEVELS, 0,
        ("32-bit samples scaled from 0..1",),
    ),
    "colours of PFM in the other byte order": (
        lambda: b"PF\r\n64 48\r\n1\r\n" + (LEVELS[::-1] / 1.0).astype(">f4").tobytes(), LEVELS, 0,
        ("32-bit samples scaled from 0..255",),
    ),
    "samples that are no numbers": (
        lambda: tiff(np.where(LEVELS > 200, np.nan, LEVELS / 255).astype(np.float32), 2),
        np.where(LEVELS > 200, 0, LEVELS), 1,
        ("32-bit samples scaled from 0..1", "samples that are no numbers taken for 0"),
    ),
    "12 bits stored as 16": (
        lambda: tiff(LEVELS.astype(np.uint16) * 16, 2), LEVELS / 16, 1,
        ("16-bit samples reduced to 8 bits", "no sample above 4095: dark, or 12 bits stored as 16"),
    ),
    "a part of the profile of a JPEG file is missing": (
        lambda: jpeg_with(b"ICC_PROFILE\0\1\2" + PROFILE[:200]), LEVELS, 9,
        ("unreadable ICC profile ignored",),
    ),
    "the parts of a profile in another order": (
        lambda: jpeg_with(
            b"ICC_PROFILE\0\2\2" + PROFILE[200:], b"ICC_PROFILE\0\1\2" + PROFILE[:200]
        ),
        WIDE, 12, ("ICC profile 'sRGB of a test' converted to sRGB",),
    ),
    "grey with alpha has a profile for grey": (
        lambda: png(both(GREY, RAMP * 0 + 255), 8, 4, packed_profile(grey_icc(1.0))),
        LINEAR_GREY, 1, ("ICC profile 'grey of a test' converted to sRGB",),
    ),
    "grey as WebP stores it has a profile for grey": (
        lambda: pillow(Image.fromarray(WHOLE_GREY), "WEBP", lossless=True,
                       icc_profile=grey_icc(1.0)),
        LINEAR_GREY, 1, ("ICC profile 'grey of a test' converted to sRGB",),
    ),
    "grey with a transparent value has a profile for grey": (
        lambda: png(GREY, 8, 0, packed_profile(grey_icc(1.0)), chunk(b"tRNS", b"\0\1")),
        LINEAR_GREY, 1, ("ICC profile 'grey of a test' converted to sRGB",),
    ),
    "primaries of PNG without a gamma": (
        lambda: png(LEVELS, 8, 2, chunk(b"cHRM", struct.pack(">8I", *stated(P3_XY)))), LEVELS, 0,
        ("PNG primaries without a gamma ignored",),
    ),
    "primaries of TIFF": (
        lambda: tiff(LEVELS, 2, tags={319: ("I", stated(P3_XY)[2:])}), LEVELS, 0,
        ("TIFF primaries ignored",),
    ),
    "Adobe RGB by the EXIF data of TIFF": (
        with_exif_of_adobe, as_srgb(LEVELS / 255, ADOBE_XY, 563 / 256), 2,
        ("Adobe RGB of the EXIF data converted to sRGB",),
    ),
    "EXIF data of Adobe RGB in PNG that states sRGB": (
        lambda: with_chunk(pillow(Image.fromarray(LEVELS), "PNG", exif=exif_of(2)),
                           chunk(b"sRGB", b"\0")), LEVELS, 0, (),
    ),
    "EXIF data of Adobe RGB in HEIF that states sRGB": (
        lambda: pillow(Image.fromarray(LEVELS), "HEIF", quality=100, chroma=444, exif=exif_of(2)),
        LEVELS, 5, (),
    ),
    "EXIF data of sRGB with an index of Adobe RGB": (
        lambda: pillow(Image.fromarray(LEVELS), "PNG", exif=exif_of(1, "R03")), LEVELS, 0, (),
    ),
    "primaries and gamma of BMP": (
        lambda: bmp(LEVELS[..., ::-1], calibrated(1.0)), as_srgb(LEVELS / 255, P3_XY, 1.0), 2,
        ("colours of the BMP header converted to sRGB",),
    ),
    "empty colours of BMP": (lambda: bmp(LEVELS[..., ::-1], bytes(52)), LEVELS, 0, ()),
    "alpha of BMP that was never set": (
        lambda: bmp(both(LEVELS[..., ::-1], RAMP * 0), bytes(52)), LEVELS, 0,
        ("alpha of 0 everywhere ignored",),
    ),
    "a palette of TIFF with alpha": (
        lambda: tiff(both(GREY, RAMP), 3, bits=8, tags=COLOUR_MAP),
        laid(PALETTE[GREY[..., 0]]), 1, (LAID,),
    ),
    "a palette of 4 bits with alpha": (
        lambda: tiff(both(GREY >> 4, RAMP >> 4), 3, bits=4, tags={
            320: ("H", (PALETTE[:16] * 257).T.ravel().tolist()), 338: ("H", [2])}),
        PALETTE[GREY[..., 0] >> 4] * (RAMP >> 4) / 15 + 255 * (1 - (RAMP >> 4) / 15), 1, (LAID,),
    ),
    "L*a*b* with alpha": (
        lambda: tiff(both(GREY * 0 + 255, GREY * 0, GREY * 0, RAMP), 8, tags={338: ("H", [2])}),
        WHOLE_GREY * 0 + 255, 1, (LAID,),
    ),
    "YCbCr with alpha": (
        lambda: tiff(both(YCBCR, RAMP), 6, tags={338: ("H", [2]), 530: ("H", [1, 1])}),
        laid(LEVELS), 4, (LAID,),
    ),
    "a thumbnail before JPEG in TIFF": (
        lambda: pages((SMALL, THUMBNAIL), (LEVELS, JPEG)), LEVELS, 9, ("first of 2 frames taken",),
    ),
    "thumbnail and picture both as JPEG in TIFF": (
        lambda: pages((SMALL, THUMBNAIL | JPEG), (LEVELS, JPEG)), LEVELS, 9,
        ("first of 2 frames taken",),
    ),
    "a mask before the picture": (
        lambda: pages((GREY[..., 0] > 99, {"photometric": "minisblack", "subfiletype": 4}),
                      (LEVELS, {"photometric": "rgb"})),
        LEVELS, 0, ("first of 2 frames taken",),
    ),
    "32-bit integers that fill their range": (
        lambda: tiff(LEVELS.astype(np.uint32) * 0x01010101, 2), LEVELS, 1,
        ("32-bit samples scaled from 0..4.29497e+09",),
    ),
    "a crop of the container of AVIF": (
        lambda: pillow(Image.fromarray(LEVELS), "AVIF", quality=100, subsampling="4:4:4")
        + b"\0\0\0\x08clap",
        LEVELS, 5, ("crop of the AVIF container ignored",),
    ),
    "the orientation of XMP in TIFF": (
        lambda: pages((LEVELS, JPEG | {"extratags": [(700, 1, None, XMP, True)]})), LEVELS, 9, (),
    ),
    "an orientation of a page that Pillow reads": (
        lambda: pages((SMALL, THUMBNAIL),
                      (np.rot90(LEVELS).copy(), JPEG | {"extratags": [(274, 3, 1, 6, True)]})),
        LEVELS, 9, ("EXIF orientation 6 applied", "first of 2 frames taken"),
    ),
    "an orientation of it that is a byte": (
        lambda: pages((np.rot90(LEVELS).copy(), JPEG | {"extratags": [(274, 1, 1, 6, True)]})),
        LEVELS, 9, ("EXIF orientation 6 applied",),
    ),
    "the orientation of XMP in AVIF, whose container has one": (
        lambda: pillow(Image.fromarray(LEVELS), "AVIF", quality=100, subsampling="4:4:4",
                       xmp=XMP), LEVELS, 5, (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_files_say(name: str) -> None:
    make, known, limit, notes = CASES[name]
    pixels, found = decode(make())
    assert pixels.shape == known.shape
    assert np.abs(pixels - known.astype(float)).max() <= limit
    assert found == notes


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 9, 10, 12, 16])
@pytest.mark.parametrize("container", ["jp2", "j2k"])
def test_jpeg_2000_of_any_bits(bits: int, container: str) -> None:
    """Pillow shifts samples of few bits, so that white is grey, and more bits of white overflow."""
    options = {"level": 0, "bitspersample": bits, "reversible": True, "codecformat": container}
    full, kind = 2**bits - 1, np.uint8 if bits <= 8 else np.uint16
    levels = both(LEVELS, RAMP) / 255
    levels[0, 0] = 1
    samples = np.rint(levels * full).astype(kind)
    files = [(samples[..., :3], 3), (samples[..., 1], 1)]
    if bits >= 8:
        files += [(samples, 4), (samples[..., 2:], 2)]
    if bits > 8:
        files += [((samples.astype(int) - 2 ** (bits - 1)).astype(np.int16)[..., :3], 3)]
    for stored, channels in files:
        known = {1: levels[..., 1:2], 2: levels[..., 2:3]}.get(channels, levels[..., :3]) * 255
        known = laid(known) if channels in (2, 4) else known
        found = decode(imagecodecs.jpeg2k_encode(stored, **options))[0]
        assert np.abs(found - known).max() <= 1 + 128 / full, (channels, stored.dtype)


@pytest.mark.parametrize("container", ["jp2", "j2k"])
@pytest.mark.parametrize("scale", [1, 257])
def test_jpeg_2000_without_its_end_mark(container: str, scale: int) -> None:
    samples = LEVELS if scale == 1 else LEVELS.astype(np.uint16) * 257
    data = imagecodecs.jpeg2k_encode(samples, level=0, reversible=True, codecformat=container)
    for lost in (1, 2):
        pixels, notes = decode(data[:-lost])
        assert np.array_equal(pixels, LEVELS)
        assert notes[-1] == "JPEG 2000 end mark missing"
    for lost in (3, 20, len(data) // 2):
        with pytest.raises(ImageError) as caught:
            decode(data[:-lost])
        assert caught.value.error_class == "damaged"


def _flipped(kind: bytes) -> bytes:
    """A PNG file with a flipped bit in the middle of a chunk that unpacks all the same."""
    data = bytearray(pillow(Image.fromarray(LEVELS), "PNG", compress_level=0))
    data[data.index(kind) + 4000] ^= 64
    return bytes(data)


def _lost_strip(tag: int) -> bytes:
    """A TIFF file whose table of offsets or sizes lacks its second strip."""
    data, entry = tiff(LEVELS, 2), struct.pack("<HHI", tag, 4, 2)
    at = data.index(entry)
    (place,) = struct.unpack_from("<I", data, at + 8)
    one = struct.pack("<HHI", tag, 4, 1) + data[place : place + 4]
    return data[:at] + one + data[at + 12 :]


@pytest.mark.parametrize(
    ("make", "error_class", "words"),
    [
        (lambda: _flipped(b"IDAT"), "damaged", "checksum"),
        (lambda: _lost_strip(273), "damaged", "missing"),
        (lambda: _lost_strip(279), "damaged", "missing"),
        (lambda: png(LEVELS, 8, 2, chunk(b"cICP", bytes([1, 13, 0, 0]))), "unsupported", "video"),
        (lambda: imagecodecs.jpegls_encode(LEVELS), "unsupported", "JPEG-LS"),
        (lambda: b"PF\n64 48\n-1.0\n" + bytes(99), "truncated", "ends before"),
        (lambda: b"PF\n64 x\n-1.0\n" + bytes(99), "damaged", "header of the PFM"),
        (lambda: b"PF\n64 48\n-+1\n" + bytes(9**6), "damaged", "cannot be decoded"),
        (lambda: pages((SMALL, {"photometric": "rgb", "subifds": 1}),
                       (GREY[..., 0], {"photometric": "cfa"})), "unsupported", "raw photograph"),
        (cr2, "unsupported", "raw photograph"),
        (lambda: pages((LEVELS, {"photometric": "minisblack", "planarconfig": "contig",
                                 "compression": "jpeg"})), "unsupported", "begins like TIFF"),
        (lambda: pillow(Image.fromarray(LEVELS), "AVIF")[:200], "damaged", "begins like AVIF"),
    ],
)  # fmt: skip
def test_what_is_refused(make: Callable[[], bytes], error_class: str, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode(make())
    assert caught.value.error_class == error_class
