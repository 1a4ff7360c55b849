"""Formats by depth, layout, meaning of samples, profile and orientation, against known pixels.

The files are made by writers of the tests, or of libraries that do not decode here, and the
expected pixels by formulas.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from itertools import product

import cv2
import numpy as np
import pytest

from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError
from dhr_batch.tests.stages.written import (
    P3_XY,
    SRGB_XY,
    as_srgb,
    chunk,
    from_light,
    grey_icc,
    icc,
    png,
    tiff,
    to_light,
    truth,
)

LAYOUTS = ("chunky", "planar", "tiled")
PACKING = ({}, {"deflate": True})
# As EXIF counts them: from upright pixels to stored ones.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
UNSIGNED = {1: np.uint8, 2: np.uint8, 4: np.uint8, 8: np.uint8, 10: np.uint16, 12: np.uint16,
            14: np.uint16, 16: np.uint16}  # fmt: skip


def quantised(levels: np.ndarray, bits: int) -> np.ndarray:
    """Samples of 0..1 as unsigned integers."""
    return np.rint(levels * (2**bits - 1)).astype(UNSIGNED[bits])


def assert_decoded(data: bytes, expected: np.ndarray, limit: float, about: object) -> None:
    pixels, _ = decode(data)
    assert pixels.shape == expected.shape, about
    difference = np.abs(pixels - expected.astype(float))
    assert difference.max() <= limit, (about, difference.max(), difference.mean())


@pytest.mark.parametrize("bits", UNSIGNED)
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_unsigned_samples(bits: int, order: str) -> None:
    levels = truth() / 255
    for layout, packing, turn in product(LAYOUTS, PACKING, (1, 6)):
        stored = np.ascontiguousarray(TURNS[turn](levels))
        options = {"bits": bits, "order": order, "layout": layout, **packing}
        options["tags"] = {274: ("H", [turn])}
        grey, colour = quantised(stored[..., 1:2], bits), quantised(stored, bits)
        full = 2**bits - 1
        known = quantised(levels, bits) / full * 255
        known_grey = known[..., 1:2].repeat(3, 2)
        about = (bits, order, layout, packing, turn)
        assert_decoded(tiff(grey, 1, **options), known_grey, 0.6, about)
        assert_decoded(tiff(full - grey, 0, **options), known_grey, 0.6, about)
        assert_decoded(tiff(colour, 2, **options), known, 0.6, about)
        if bits in (8, 16) and packing:
            assert_decoded(tiff(colour, 2, predictor=True, **options), known, 0.6, about)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiff_with_alpha(bits: int, layout: str) -> None:
    levels = truth() / 255
    alpha = np.linspace(0, 1, levels.shape[1])[None, :, None] * np.ones((len(levels), 1, 1))
    full = 2**bits - 1
    straight = quantised(np.concatenate([levels, alpha], 2), bits)
    multiplied = quantised(np.concatenate([levels * alpha, alpha], 2), bits)
    laid = (levels * alpha + 1 - alpha) * 255
    cases = [((2,), straight, laid), ((1,), multiplied, laid), ((0,), straight, levels * 255),
             ((0, 2), np.insert(straight, 3, 7, 2), laid), ((), straight, laid)]  # fmt: skip
    for extra, samples, known in cases:
        tags = {338: ("H", extra)} if extra else {}
        data = tiff(samples, 2, layout=layout, tags=tags)
        assert_decoded(data, known, 1.1, (bits, layout, extra))
    grey = straight[..., [1, 3]]
    known = laid[..., 1:2].repeat(3, 2)
    for photometric, stored in ((1, grey), (0, np.stack([full - grey[..., 0], grey[..., 1]], 2))):
        data = tiff(stored, photometric, layout=layout, tags={338: ("H", [2])})
        assert_decoded(data, known, 1.1, (bits, layout, photometric))


@pytest.mark.parametrize(
    ("kind", "white"),
    [(np.float16, 1), (np.float32, 1), (np.float64, 1), (np.float32, 255), (np.float32, 65535),
     (np.int16, 255), (np.int32, 65535), (np.uint32, 65535), (np.int16, 32767),
     (np.int32, 2**31 - 1)],
)  # fmt: skip
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_other_samples(kind: type, white: float, order: str) -> None:
    levels = truth() / 255
    levels[0, 0] = 1
    samples = (levels * white).astype(kind)
    known = levels * 255
    for layout, packing in product(LAYOUTS, PACKING):
        options = {"order": order, "layout": layout, **packing}
        about = (kind, white, options)
        assert_decoded(tiff(samples, 2, **options), known, 1, about)
        grey = known[..., 1:2].repeat(3, 2)
        assert_decoded(tiff(samples[..., 1:2], 1, **options), grey, 1, about)
        inverted = (white - samples[..., 1:2].astype(np.float64)).astype(kind)
        if inverted.max() <= white and inverted.max() > white * 0.9:
            assert_decoded(tiff(inverted, 0, **options), grey, 2.5, about)


@pytest.mark.parametrize("white", [255, 65535])
def test_dark_and_bright_tiff_of_floats_are_told_apart(white: int) -> None:
    samples = (truth() / 255 * 0.05 * white).astype(np.float32)
    samples[0, 0] = white * 0.9
    assert_decoded(tiff(samples, 2), samples.astype(float) * 255 / white, 1, "dark")
    bright = (truth() / 255 * 3).astype(np.float32)
    assert_decoded(tiff(bright, 2), bright.astype(float).clip(0, 1) * 255, 1, "bright")


@pytest.mark.parametrize(
    ("kind", "white", "black", "brightest"),
    [(np.float32, 1, 0, 1.06), (np.float32, 1, 0, 4), (np.float16, 1, 0, 900),
     (np.float32, 1, 0, 1e6), (np.float64, 255, 0, 262), (np.float32, 255, 0, 70_000),
     (np.float32, 65535, 0, 66_000), (np.float32, 1, 0, np.inf), (np.float32, 1, -1, 1),
     (np.float32, 1, -1, 1.2), (np.int8, 127, -128, 127), (np.int16, 32767, -32768, 32767)],
)  # fmt: skip
def test_tiff_of_samples_beyond_black_and_white(
    kind: type, white: float, black: float, brightest: float
) -> None:
    """Resampling overshoots, lamps are brighter than white, networks have -1..1."""
    levels = truth() / 255
    alpha = np.linspace(0, 1, levels.shape[1])[None, :, None] * np.ones((len(levels), 1, 1))
    samples = np.concatenate([levels, alpha], 2) * (white - black) + black
    samples[0, 0, :3], levels[0, 0] = brightest, 1
    if black == 0:
        samples[1, 1, :3], levels[1, 1] = -0.03 * white, 0
    stored = samples.astype(kind)
    assert_decoded(tiff(stored[..., :3], 2), levels * 255, 1, "opaque")
    laid = (levels * alpha + 1 - alpha) * 255
    assert_decoded(tiff(stored, 2, tags={338: ("H", [2])}), laid, 1.1, "alpha")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_with_a_palette(bits: int) -> None:
    indices = (np.indices((20, 28)).sum(0) % 2**bits).astype(np.uint8)[..., None]
    table = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
    for layout, scale in product(LAYOUTS, (257, 256, 1)):
        colours = {320: ("H", (table * scale).T.ravel().tolist())}
        data = tiff(indices, 3, bits=bits, layout=layout, tags=colours)
        assert_decoded(data, table[indices[..., 0]], 0, (bits, layout, scale))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiff_of_other_colours(bits: int, layout: str) -> None:
    levels = truth() / 255
    ink = quantised(np.concatenate([1 - levels, np.zeros_like(levels[..., :1])], 2), bits)
    assert_decoded(tiff(ink, 5, layout=layout), levels * 255, 1, ("CMYK", bits, layout))
    # A grey of CIELAB has no a and b, so its formula is short.
    light = to_light(levels[..., 1])
    lightness = np.where(light > 0.008856, 116 * np.cbrt(light) - 16, 903.3 * light)
    zero = np.zeros_like(lightness)
    signed = np.stack([quantised(lightness / 100, bits), zero, zero], 2).astype(UNSIGNED[bits])
    offset = signed + np.array([0, 1, 1], UNSIGNED[bits]) * UNSIGNED[bits](2 ** (bits - 1))
    grey = (levels[..., 1:2] * 255).repeat(3, 2)
    assert_decoded(tiff(signed, 8, layout=layout), grey, 4, ("CIELab", bits, layout))
    assert_decoded(tiff(offset, 9, layout=layout), grey, 4, ("ICCLab", bits, layout))


def test_tiff_of_ycbcr() -> None:
    levels = truth().astype(float)
    luma = levels @ [0.299, 0.587, 0.114]
    blue, red = (levels[..., 2] - luma) / 1.772 + 128, (levels[..., 0] - luma) / 1.402 + 128
    samples = np.rint(np.stack([luma, blue, red], 2)).astype(np.uint8)
    for layout in LAYOUTS:
        tags = {530: ("H", [1, 1])}
        assert_decoded(tiff(samples, 6, layout=layout, tags=tags), levels, 2, layout)
    assert refused(tiff(samples, 6, tags={530: ("H", [2, 2])})) == "unsupported"


@pytest.mark.parametrize("bits", [8, 16])
def test_profiles_are_applied_by_their_content(bits: int) -> None:
    levels = truth() / 255
    cases = [(SRGB_XY, 1.0), (SRGB_XY, 1.8), (P3_XY, 2.2), (P3_XY, 1.0)]
    for primaries, gamma in cases:
        profile = icc(primaries, gamma, "sRGB IEC61966-2.1")
        stored = quantised(levels, bits)
        known = as_srgb(stored / (2**bits - 1), primaries, gamma)
        about = (primaries, gamma, bits)
        as_tag = {34675: ("B", profile)}
        for layout in LAYOUTS:
            assert_decoded(tiff(stored, 2, layout=layout, tags=as_tag), known, 2, about)
        packed = chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(profile))
        assert_decoded(png(stored, bits, 2, packed), known, 2, about)
        stated = struct.pack(
            ">8I", *(round(v * 1e5) for xy in ((0.3127, 0.3290), *primaries) for v in xy)
        )
        chunks = (chunk(b"gAMA", struct.pack(">I", round(1e5 / gamma))), chunk(b"cHRM", stated))
        assert_decoded(png(stored, bits, 2, *chunks), known, 2, about)
    grey = stored[..., 1:2]
    known = from_light(grey / (2**bits - 1)).repeat(3, 2) * 255
    for profile in (grey_icc(1.0), icc(SRGB_XY, 1.0)):
        tags = {34675: ("B", profile)}
        assert_decoded(tiff(grey, 1, tags=tags), known, 1.5, (bits, "grey"))
        assert_decoded(tiff(2**bits - 1 - grey, 0, tags=tags), known, 1.5, (bits, "white is zero"))


@pytest.mark.parametrize(
    ("bits", "colour_type"),
    [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (2, 3), (4, 3), (8, 3),
     (8, 4), (16, 4), (8, 6), (16, 6)],
)  # fmt: skip
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_png(bits: int, colour_type: int, orientation: int) -> None:
    upright = truth() / 255
    levels = np.ascontiguousarray(TURNS[orientation](upright))
    full, chunks = 2**bits - 1, [chunk(b"eXIf", _exif(orientation))]
    alpha = np.linspace(0, 1, levels.shape[1])[None, :, None] * np.ones((len(levels), 1, 1))
    colours = levels if colour_type in (2, 6) else levels[..., 1:2]
    samples = quantised(colours, bits)
    known = samples / full * 255
    if colour_type == 3:
        table = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), np.uint8)
        chunks += [chunk(b"PLTE", table.tobytes()), chunk(b"tRNS", bytes([0] + [255] * full))]
        known = np.where(samples == 0, 255, table[samples[..., 0]])
    elif colour_type in (4, 6):
        samples = quantised(np.concatenate([colours, alpha], 2), bits)
        known = (colours * alpha + 1 - alpha) * 255
    else:
        key = samples[3, 5]
        chunks.append(chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
        known = np.where((samples == key).all(2, keepdims=True), 255, known)
    data = png(samples, bits, colour_type, *chunks)
    expected = np.broadcast_to(known, (*known.shape[:2], 3))
    back = {1: 1, 6: 8, 8: 6}[orientation]
    assert_decoded(data, TURNS[back](expected), 1.1, (bits, colour_type, orientation))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("profile", [None, icc(P3_XY, 2.2)])
def test_jpeg(orientation: int, profile: bytes | None) -> None:
    large = truth().repeat(8, 0).repeat(8, 1)
    stored = np.ascontiguousarray(TURNS[orientation](large))
    options = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
    data = cv2.imencode(".jpg", stored[..., ::-1], options)[1].tobytes()
    segments = b"\xff\xe1" + _segment(b"Exif\0\0" + _exif(orientation))
    if profile:
        segments += b"\xff\xe2" + _segment(b"ICC_PROFILE\0\1\1" + profile)
    known = as_srgb(large / 255, P3_XY, 2.2) if profile else large
    assert_decoded(data[:2] + segments + data[2:], known, 8, orientation)


@pytest.mark.parametrize(
    ("extension", "kind"),
    [(".webp", np.uint8), (".jp2", np.uint8), (".jp2", np.uint16), (".ppm", np.uint8),
     (".ppm", np.uint16), (".bmp", np.uint8), (".png", np.uint16), (".tiff", np.uint16),
     (".tiff", np.float32)],
)  # fmt: skip
@pytest.mark.parametrize("grey", [False, True])
def test_files_of_another_library(extension: str, kind: type, grey: bool) -> None:
    if grey and (extension, kind) == (".webp", np.uint8):
        return
    levels = truth().repeat(8, 0).repeat(8, 1).astype(float)
    levels = levels[..., 1] if grey else levels
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[kind]
    if kind is np.float32:
        levels[0, 0] = 255
    stored = (levels * scale).astype(kind)
    lossless = {
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, 101],
        ".jp2": [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000],
        ".tiff": [cv2.IMWRITE_TIFF_COMPRESSION, 5],
    }
    name = ".pgm" if grey and extension == ".ppm" else extension
    _, data = cv2.imencode(name, stored if grey else stored[..., ::-1], lossless.get(extension, []))
    known = np.stack([levels] * 3, 2) if grey else levels
    assert_decoded(data.tobytes(), known, 1, (extension, kind, grey))


def refused(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data)
    return caught.value.error_class


def _exif(orientation: int) -> bytes:
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x112, 3, 1, orientation, 0, 0)


def _segment(content: bytes) -> bytes:
    return struct.pack(">H", len(content) + 2) + content
