"""Decoding of untrusted image files."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.pixels.refusals import FORMATS
from dhr_batch.tests.awkward import _flat_png, _png, _png16
from dhr_batch.tests.stages.written import tiff


def ramp(height=40, width=56):
    """A smooth picture whose corners all differ, so that turned copies are told apart."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, 255 - x * 2 - y * 3], -1).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_close(pixels, expected, limit):
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() <= limit


def error_of(data, **options):
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    assert str(caught.value)
    return caught.value.error_class


@pytest.mark.parametrize("kind", FORMATS)
def test_every_allowed_format(kind):
    lossy = kind in ("JPEG", "WEBP", "GIF", "AVIF", "HEIF")
    pixels, notes = decode(encoded(ramp(), kind))
    assert_close(pixels, ramp().astype(int), 12 if lossy else 0)
    assert notes == ()


def test_another_format_of_pillow_is_refused():
    assert error_of(encoded(ramp(), "EPS")) == "unsupported"
    assert error_of(encoded(ramp(), "PCX")) == "not_an_image"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turns[orientation](ramp()))
    pixels, notes = decode(encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(pixels, ramp())
    assert bool(notes) == (orientation > 1)


@pytest.mark.parametrize(
    ("mode", "kind", "limit"),
    [("1", "PNG", 0), ("L", "PNG", 1), ("LA", "PNG", 1), ("RGBA", "PNG", 0), ("P", "PNG", 16),
     ("CMYK", "JPEG", 8), ("CMYK", "TIFF", 1), ("YCbCr", "TIFF", 4), ("LAB", "TIFF", 6)],
)  # fmt: skip
def test_modes(mode, kind, limit):
    image = Image.fromarray(ramp())
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    else:
        converted = image.convert(mode)
    grey = {"1": "1", "L": "L", "LA": "L"}
    kept = image.convert(grey[mode]).convert("RGB") if mode in grey else image
    expected = np.asarray(kept).astype(int)
    pixels, _ = decode(encoded(converted, kind))
    assert_close(pixels, expected, limit)


def test_sixteen_bits_are_scaled_not_clipped():
    grey = ramp()[..., 0]
    pixels, notes = decode(encoded(Image.fromarray(grey.astype(np.uint16) * 257)))
    np.testing.assert_array_equal(pixels[..., 1], grey)
    assert notes == ("16-bit samples reduced to 8 bits",)
    pixels, notes = decode(_png16(ramp()))
    np.testing.assert_array_equal(pixels, ramp())
    assert notes == ("16-bit samples reduced to 8 bits",)


@pytest.mark.parametrize(("scale", "kind"), [(1 / 255, np.float32), (1, np.int32), (257, np.int32)])
def test_32_bit_samples_are_scaled_from_the_white_that_fits(scale, kind):
    grey = ramp()[..., 0]
    grey[0, 0] = 255
    samples = (grey.astype(np.float64) * scale).astype(kind)
    pixels, notes = decode(encoded(Image.fromarray(samples), "TIFF"))
    np.testing.assert_array_equal(pixels[..., 2], grey)
    assert "scaled from 0.." in notes[0]


def test_transparency_is_laid_on_white():
    alpha = np.full((40, 56), 255, np.uint8)
    alpha[:10] = 0
    pixels, notes = decode(encoded(np.dstack([ramp(), alpha])))
    assert (pixels[:10] == 255).all()
    np.testing.assert_array_equal(pixels[10:], ramp()[10:])
    assert notes == ("transparency laid on white",)

    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    pixels, notes = decode(encoded(palette, transparency=1))
    assert (pixels == 255).all()
    assert notes == ("transparency laid on white",)


def test_icc_profile_is_converted_to_srgb():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    pixels, notes = decode(encoded(ramp(), icc_profile=lab))
    np.testing.assert_array_equal(pixels, ramp())
    assert "ignored: made for Lab" in notes[0]
    assert decode(encoded(ramp(), icc_profile=b"no profile"))[1] == (
        "unreadable ICC profile ignored",
    )
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode(encoded(ramp(), icc_profile=srgb))[1] == ()


def test_wide_gamut_photograph(shared):
    pixels, notes = decode((shared / "data" / "fmt_rgba16_noface.png").read_bytes())
    assert pixels.shape == (256, 342, 3)
    assert any("Adobe RGB" in note and "converted" in note for note in notes)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_first_frame_is_taken(kind):
    red = Image.new("RGB", (32, 32), "red")
    more = [Image.new("RGB", (32, 32), colour) for colour in ("blue", "lime")]
    pixels, notes = decode(encoded(red, kind, save_all=True, append_images=more))
    assert_close(pixels, np.array(red).astype(int), 4)
    assert notes == ("first of 3 frames taken",)


def test_refusals():
    jpeg = encoded(ramp(200, 300), "JPEG")
    assert error_of(b"") == "empty"
    assert error_of(b"\x00") == "not_an_image"
    assert error_of(b"some text\n") == "not_an_image"
    assert error_of(b"%PDF-1.7 ...") == "unsupported"
    assert error_of(jpeg[: len(jpeg) // 2]) == "truncated"
    assert error_of(encoded(ramp())[:-40]) == "truncated"
    assert error_of(encoded(ramp(8, 8))) == "too_small"
    assert error_of(encoded(ramp()), max_megapixels=0.002) == "too_large"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory peaks need /proc")
def test_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    bomb = _flat_png(10_000, 8_000)
    assert len(bomb) < 200_000
    (tmp_path / "bomb.png").write_bytes(bomb)
    # A process of its own, and the peak of its own memory: `ru_maxrss` is inherited from here.
    script = """if True:
        import re, sys
        from dhr_batch.stages.decode import ImageError, decode
        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
        data = open(sys.argv[1], "rb").read()
        before = peak()
        try:
            decode(data, max_megapixels=float(sys.argv[2]))
        except ImageError as error:
            print(error.error_class, (peak() - before) / 1024)
        else:
            print("decoded", (peak() - before) / 1024)
    """

    def run(limit):
        command = [sys.executable, "-c", script, str(tmp_path / "bomb.png"), limit]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        word, megabytes = done.stdout.split()
        return word, float(megabytes)

    word, megabytes = run("64")
    print(f"\n{len(bomb)} bytes of 80 megapixels: {word}, {megabytes:.1f} MB more memory")
    assert word == "too_large"
    assert megabytes < 50
    word, megabytes = run("100")
    assert word == "decoded"
    assert megabytes > 200
    assert error_of(_png(20_000, 20_000, 8, 0, b"")) == "too_large"


SEEDS = [encoded(ramp(20, 24), kind) for kind in FORMATS] + [
    encoded(Image.fromarray(ramp(20, 24)).convert("P"), "GIF", save_all=True,
            append_images=[Image.new("P", (24, 20))]),
    encoded(Image.fromarray(ramp(20, 24)).convert("CMYK"), "TIFF", compression="tiff_lzw"),
    encoded(ramp(20, 24), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03"
            b"\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00\x00\x00", progressive=True),
]  # fmt: skip


@settings(max_examples=300, derandomize=True)
@given(
    seed=st.sampled_from(SEEDS),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_nothing_else(seed, flips, keep):
    data = bytearray(seed)
    for place, value in flips:
        data[int(place * len(data))] = value
    with contextlib.suppress(ImageError):
        pixels, _ = decode(bytes(data[: round(keep * len(data))]), max_megapixels=4)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3


FUZZ = """if True:
    import random, re, sys, time, warnings
    from collections import Counter
    from pathlib import Path
    from dhr_batch.stages.decode import ImageError, decode

    warnings.simplefilter("ignore")
    draw, ends, slowest = random.Random(6), Counter(), 0.0
    seeds = [path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())]

    def mutated(seed):
        data, count = bytearray(seed), draw.randint(0, 6)
        for _ in range(count):
            # Headers, which say how large a picture is, are hit far more often than by chance.
            start = draw.randrange(min(len(data), draw.choice((40, 400, 10**6, 10**6, 10**6))))
            data[start : start + draw.choice((1, 1, 4))] = draw.randbytes(draw.choice((1, 4)))
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        if draw.random() < 0.2:
            other = draw.choice(seeds)
            data += other[draw.randrange(len(other)) :]
        return bytes(data)

    for number in range(2000):
        data, began = mutated(seeds[number % len(seeds)]), time.process_time()
        try:
            pixels, _ = decode(data)
            assert pixels.ndim == 3 and pixels.shape[2] == 3, pixels.shape
            ends["decoded"] += 1
        except ImageError as error:
            ends[error.error_class] += 1
        slowest = max(slowest, time.process_time() - began)
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e6
    print(slowest, peak, dict(ends))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory peaks need /proc")
def test_two_thousand_damaged_files_cost_little_time_and_memory(tmp_path):
    """Pictures of a usual size, so that damaged ones can ask for much memory."""
    large = np.tile(ramp(), (12, 9, 1))
    for number, kind in enumerate(FORMATS):
        (tmp_path / f"{number}").write_bytes(encoded(large, kind))
    (tmp_path / "16bit").write_bytes(_png16(large))
    for layout, kind in (("planar", np.uint16), ("tiled", np.float32)):
        (tmp_path / layout).write_bytes(tiff(large.astype(kind), 2, layout=layout, deflate=True))
    command = [sys.executable, "-c", FUZZ, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    seconds, megabytes, ends = done.stdout.split(maxsplit=2)
    print(f"\nslowest of 2,000: {float(seconds):.2f} s; peak: {float(megabytes):.0f} MB; {ends}")
    assert float(seconds) < 2
    assert float(megabytes) < 1000
    # Both kinds of ends are met, not one trivial refusal.
    assert re.search(r"'decoded': \d{2,}", ends)
    assert ends.count(":") >= 4
