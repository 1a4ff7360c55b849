"""Decode untrusted image files to upright sRGB pixels, or raise an `ImageError` with the reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from dhr_batch.stages.base import ImageError

# Pillow can open over 40 formats, for some of which it starts other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
MIN_SIDE = 16

# Exceptions that Pillow's parsers raise for damaged files. Any other one is a bug of this module.
_DAMAGE = (
    ArithmeticError, AttributeError, AssertionError, EOFError, LookupError, NotImplementedError,
    OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"),
    (b"II*\x00", "TIFF"), (b"MM\x00*", "TIFF"),
)  # fmt: skip
_OTHER = (
    (b"%PDF", "PDF"), (b"%!PS", "PostScript"), (b"8BPS", "Photoshop"), (b"<svg", "SVG"),
    (b"\x00\x00\x01\x00", "ICO"), (b"v/1\x01", "OpenEXR"),
)  # fmt: skip

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112


def decode(data: bytes, max_megapixels: float = 64) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode an image file.

    The EXIF orientation is applied and the ICC profile is converted to sRGB. Transparent pixels are
    blended with white. Samples of 16 and 32 bits and floats are scaled to 8 bits. Of several frames
    or pages the first is taken. The size is checked before any pixel is decoded.

    Args:
        data: Content of the file.
        max_megapixels: Larger images are refused.

    Returns:
        Pixels, uint8 [H, W, 3], and notes on what was changed.

    Raises:
        ImageError: The file cannot be decoded. Its class is `empty`, `not_an_image`, `unsupported`,
            `truncated`, `damaged`, `too_large` or `too_small`. Bad data raises no other exception.
    """
    if not data:
        raise ImageError("empty", "the file has 0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", f"the image has too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except _DAMAGE as error:
        raise _damaged(error) from error
    with image:
        _check_size(image.size, max_megapixels)
        try:
            return _to_rgb(image)
        except Image.DecompressionBombError as error:
            raise ImageError("too_large", f"the image has too many pixels: {error}") from error
        except _DAMAGE as error:
            raise _damaged(error) from error


def _check_size(size: tuple[int, int], max_megapixels: float) -> None:
    width, height = size
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            "too_large",
            f"the image of {width} x {height} pixels has {width * height / 1e6:.1f} megapixels, "
            f"the limit is {max_megapixels:g}; raise align.max_megapixels or reduce the image",
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            "too_small", f"{width} x {height} pixels; at least {MIN_SIDE} per side are needed"
        )


def _unidentified(data: bytes) -> ImageError:
    for magic, name in _MAGIC:
        if data.startswith(magic) and len(data) > len(magic):
            return ImageError("damaged", f"it begins like {name}, but its header cannot be read")
    head = data.lstrip()[:16].lower()
    for magic, name in _OTHER:
        if data.startswith(magic) or head.startswith(magic.lower()):
            return ImageError("unsupported", f"{name} files are not read; {_convert_hint()}")
    if data[4:8] == b"ftyp":
        return ImageError("unsupported", f"this HEIF or video file is not read; {_convert_hint()}")
    return ImageError(
        "not_an_image", f"the file is not an image of a known format; {_convert_hint()}"
    )


def _convert_hint() -> str:
    return "convert it to one of: " + ", ".join(FORMATS)


def _damaged(error: BaseException) -> ImageError:
    text = f"{type(error).__name__}: {error}"
    if any(word in text.lower() for word in ("truncat", "eof", "unexpected end", "incomplete")):
        return ImageError("truncated", f"the file ends too early ({text})")
    return ImageError("damaged", f"the file cannot be decoded ({text})")


def _to_rgb(image: ImageFile.ImageFile) -> tuple[np.ndarray, tuple[str, ...]]:
    notes = []
    if _is_16_bit(image):
        notes.append("16-bit samples reduced to 8 bits")
    image.load()
    orientation = _orientation(image)
    flat, flat_notes = _flatten(image)
    rgb, profile_notes = _to_srgb(flat, image.info.get("icc_profile"))
    notes += flat_notes + profile_notes
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
        notes.append(f"EXIF orientation {orientation} applied")
    pixels = np.array(rgb)
    # Counting frames moves the decoder, so it comes after the pixels are copied.
    if (frames := _frames(image)) != 1:
        notes.append(f"first of {frames or 'several'} frames taken")
    return pixels, tuple(notes)


def _is_16_bit(image: Image.Image) -> bool:
    # Formats describe their samples in different ways, but all name the raw mode.
    return ";16" in str(getattr(image, "tile", "")) or image.mode.startswith("I;16")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _DAMAGE:
        # With broken metadata, the pixels are taken as they are stored.
        return 1


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except _DAMAGE:
        # The first frame is decoded already; 0 stands for an unknown number of frames.
        return 0


def _flatten(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert any mode of Pillow to L, RGB, CMYK or LAB without transparency."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _scaled(np.asarray(image).astype(np.float64), 65535.0), []
    if mode in ("I", "F"):
        return _stretch(np.asarray(image).astype(np.float64), mode)
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    elif mode in ("P", "PA") or (mode in ("1", "L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.mode == "LA":
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        opaque = image.getchannel("A").getextrema() == (255, 255)
        notes = [] if opaque else ["transparency laid on white"]
        return Image.alpha_composite(white, image).convert("RGB"), notes
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, []
    return image.convert("L" if image.mode == "1" else "RGB"), []


def _scaled(values: np.ndarray, white: float) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values * (255.0 / white)), 0, 255).astype(np.uint8))


def _stretch(values: np.ndarray, mode: str) -> tuple[Image.Image, list[str]]:
    """Scale 32-bit integers and floats to 8 bits.

    They have no fixed white, so the smallest usual value of white that fits is taken.
    """
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    usual = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    white = next((w for w in usual if low >= 0 and high <= w), None)
    if white is not None:
        return _scaled(values, white), [f"32-bit samples scaled from 0..{white:g}"]
    image = _scaled(values - low, max(high - low, 1e-12))
    return image, [f"32-bit samples scaled from {low:g}..{high:g}"]


def _to_srgb(image: Image.Image, icc: Any) -> tuple[Image.Image, list[str]]:
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return converted, []
    if not icc:
        return image.convert("RGB"), []
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        space = profile.profile.xcolor_space.strip()
        name = (profile.profile.profile_description or "unnamed").strip()
    except _DAMAGE:
        return image.convert("RGB"), ["unreadable ICC profile ignored"]
    if space != {"L": "GRAY"}.get(image.mode, image.mode):
        # Careless conversions often leave a colour profile on pixels of another kind.
        return image.convert("RGB"), [f"ICC profile {name!r} ignored: made for {space}"]
    if name.lower().startswith("srgb"):
        return image.convert("RGB"), []
    try:
        converted = ImageCms.profileToProfile(
            image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, *_DAMAGE):
        return image.convert("RGB"), [f"ICC profile {name!r} could not be applied"]
    assert converted is not None
    return converted, [f"ICC profile {name!r} converted to sRGB"]
