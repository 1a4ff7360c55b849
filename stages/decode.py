"""Decode untrusted image files to upright sRGB pixels, or raise an `ImageError` with the reason."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.options.align import MAX_MEGAPIXELS
from dhr_batch.stages.pixels import (
    DAMAGE,
    colours,
    containers,
    heif,
    jpeg,
    jpeg2000,
    pfm,
    png,
    tiff,
)
from dhr_batch.stages.pixels.colours import Colours
from dhr_batch.stages.pixels.raster import Raster, integers, stretched
from dhr_batch.stages.pixels.refusals import FORMATS, damaged, unidentified

MIN_SIDE = 16

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

_Check = Callable[[tuple[int, int]], None]
_Decoded = tuple[np.ndarray, list[str]]


def decode(
    data: bytes, max_megapixels: float = MAX_MEGAPIXELS
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode an image file.

    The orientation is applied, which is that of EXIF, or of the container of HEIF. Colours are
    converted to sRGB by what the file says of them (ICC profile, gamma, primaries). Transparent
    pixels are blended with white. Samples of 10 to 32 bits and floats are scaled to 8 bits. Of
    several frames or pages the first is taken, of a HEIF file the primary picture. The size is
    checked before any pixel is decoded.

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

    def check(size: tuple[int, int]) -> None:
        _check_size(size, max_megapixels)

    readers = ((tiff.MAGIC, _tiff), (png.MAGIC, _png), (pfm.MAGIC, _pfm))
    read = next((reader for magic, reader in readers if data.startswith(magic)), _other)
    try:
        with _without_limit():
            pixels, notes = read(data, check)
    except UnidentifiedImageError as error:
        raise unidentified(data) from error
    except DAMAGE as error:
        raise damaged(error) from error
    return np.ascontiguousarray(pixels), tuple(notes)


_users = 0
_lock = threading.Lock()
_PILLOW_LIMIT = Image.MAX_IMAGE_PIXELS


@contextmanager
def _without_limit() -> Iterator[None]:
    """Lift Pillow's own limit of pixels, which holds for the process: sizes are checked here."""
    global _users
    with _lock:
        _users += 1
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                Image.MAX_IMAGE_PIXELS = _PILLOW_LIMIT


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


def _tiff(data: bytes, check: _Check) -> _Decoded:
    page = tiff.read(data, check)
    space = page.colours or containers.camera_colours(lambda: containers.exif(data))
    turned = False
    if page.raster is None:
        with Image.open(containers.Reads(data), formats=("TIFF",)) as image:
            image.seek(page.number)
            # Pillow turns pages, also by XMP, which is no part of TIFF, but not by bytes.
            image.info.pop("xmp", None)
            turned = isinstance(image.getexif().get(_ORIENTATION_TAG), int)
            pixels, notes = _to_rgb(image, space)
    else:
        pixels, notes = page.raster.to_srgb(space)
    if turned:
        more = [_turned_note(page.orientation)] if page.orientation in _UPRIGHT else []
    else:
        pixels, more = _upright(pixels, page.orientation)
    return pixels, page.notes + notes + more + _frames_note(containers.tiff_pages(data))


def _pfm(data: bytes, check: _Check) -> _Decoded:
    raster, notes = pfm.read(data, check)
    pixels, more = raster.to_srgb(None)
    return pixels, notes + more


def _png(data: bytes, check: _Check) -> _Decoded:
    parts = png.read(data)
    with Image.open(containers.Reads(parts.pixels), formats=("PNG",)) as image:
        check(image.size)
        image.info.update(parts.info)
        orientation = _orientation(image)
        space = parts.colours or containers.camera_colours(image.getexif)
        decoded = _png16(parts.pixels, space) if parts.depth == 16 else _to_rgb(image, space)
    pixels, notes = decoded
    pixels, more = _upright(pixels, orientation)
    return pixels, notes + parts.notes + more + _frames_note(parts.frames)


def _png16(data: bytes, space: Colours | None) -> _Decoded:
    """Decode with libpng, because Pillow reduces samples before it looks for transparent ones."""
    import imagecodecs

    samples = imagecodecs.png_decode(data)
    samples = samples[..., None] if samples.ndim == 2 else samples
    channels = samples.shape[2] - 1 + samples.shape[2] % 2
    values, notes = integers(samples[..., :channels], 16)
    alpha = samples[..., channels] if channels < samples.shape[2] else None
    pixels, more = Raster("L" if channels == 1 else "RGB", values, alpha).to_srgb(space)
    return pixels, notes + more


def _other(data: bytes, check: _Check) -> _Decoded:
    reads = containers.Reads(data)
    with Image.open(reads, formats=FORMATS) as image:
        check(image.size)
        if image.format in ("BMP", "PPM"):
            # Pillow reads both bytes of each packed run, and each pixel of 10 or 12 bits.
            reads.left += 2 * image.width * image.height
        if image.format == "HEIF":
            return _heif(image, data)
        if image.format == "JPEG2000":
            return _jpeg2000(image, data)
        deep = ["16-bit samples reduced to 8 bits"] if _is_16_bit(image) else []
        if image.format == "AVIF":
            # Its container has the orientation. XMP is often that of the file it was made from.
            image.info.pop("xmp", None)
            if any(kind == b"clap" for kind, _ in containers.few_boxes(data)):
                deep.append("crop of the AVIF container ignored")
        # Frames of other formats are made whole by Pillow.
        box = image.tile[0].extents if image.format == "GIF" and image.tile else None
        whole, ended = _loaded(image, data)
        space = containers.stated_colours(whole, data) or containers.camera_colours(whole.getexif)
        pixels, notes = _to_rgb(whole, space)
        if box and (box[3] - box[1], box[2] - box[0]) != pixels.shape[:2]:
            covered = np.s_[box[1] : box[3], box[0] : box[2]]
            pixels, part = np.full_like(pixels, 255), pixels[covered]
            pixels[covered] = part
            notes.append("first frame smaller than the picture, which is white around it")
        pixels, more = _upright(pixels, _orientation(image))
        # Counting frames moves the decoder, so it comes after the pixels are copied.
        frames = containers.gif_frames(data) if image.format == "GIF" else _frames(image)
    return pixels, deep + ended + notes + more + _frames_note(frames)


def _heif(image: ImageFile.ImageFile, data: bytes) -> _Decoded:
    # libheif turns the pixels as the container says. EXIF only repeats it, and does not count.
    space = containers.stated_colours(image, data) or containers.camera_colours(image.getexif)
    if image.info["bit_depth"] > 8:
        raster, notes = heif.deep(data)
        pixels, more = raster.to_srgb(space)
    else:
        notes = []
        pixels, more = _to_rgb(image, space)
    frames = _frames(image)
    return pixels, notes + more + ([f"main one of {frames} pictures taken"] if frames > 1 else [])


def _jpeg2000(image: ImageFile.ImageFile, data: bytes) -> _Decoded:
    space = containers.stated_colours(image, data) or containers.camera_colours(image.getexif)
    try:
        return _components(image, data, space)
    except DAMAGE:
        whole = jpeg2000.with_end(data)
        if whole is None:
            raise
    with Image.open(io.BytesIO(whole), formats=("JPEG2000",)) as image:
        pixels, notes = _components(image, whole, space)
    return pixels, [*notes, "JPEG 2000 end mark missing"]


def _components(image: ImageFile.ImageFile, data: bytes, space: Colours | None) -> _Decoded:
    if jpeg2000.is_deep(data):
        raster, notes = jpeg2000.deep(data)
        pixels, more = raster.to_srgb(space)
        return pixels, notes + more
    image.load()
    return _to_rgb(jpeg2000.scaled(image, data), space)


def _loaded(image: ImageFile.ImageFile, data: bytes) -> tuple[ImageFile.ImageFile, list[str]]:
    """Decode the pixels. A JPEG file without its end mark is read if it has all of them."""
    cut = OSError("the image is truncated: its end mark is missing")
    if image.format not in ("JPEG", "MPO"):
        image.load()
        return image, []
    containers.check_scans(data)
    notes = jpeg.check(data)
    if image.mode == "CMYK" and "adobe" not in image.info:
        notes.append("CMYK without Adobe's mark read as inverted, as Adobe writes it")
    try:
        image.load()
        if containers.has_end(data):
            return image, notes
    except OSError as error:
        if "truncated" not in str(error):
            raise
        cut = error
    ended = [Image.open(io.BytesIO(each), formats=("JPEG",)) for each in containers.with_end(data)]
    if not ended or ended[0].tobytes() != ended[1].tobytes():
        raise cut
    return ended[0], [*notes, "JPEG end mark missing"]


def _is_16_bit(image: Image.Image) -> bool:
    # Formats describe their samples in different ways, but all name the raw mode. The pixels of BMP
    # files have 16 bits, not their samples.
    raw = image.format != "BMP" and ";16" in str(getattr(image, "tile", ""))
    return raw or image.mode.startswith("I;16")


def _orientation(image: Image.Image) -> int:
    try:
        stated = image.getexif().get(_ORIENTATION_TAG, 1)
        # Some cameras write a byte, which is not converted to a number.
        return stated[0] if isinstance(stated, bytes) else int(stated)
    except DAMAGE:
        # With broken metadata, the pixels are taken as they are stored.
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> _Decoded:
    if orientation not in _UPRIGHT:
        return pixels, []
    turned = Image.fromarray(np.ascontiguousarray(pixels)).transpose(_UPRIGHT[orientation])
    return np.array(turned), [_turned_note(orientation)]


def _turned_note(orientation: int) -> str:
    return f"EXIF orientation {orientation} applied"


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except DAMAGE:
        # The first frame is decoded already; 0 stands for an unknown number of frames.
        return 0


def _frames_note(frames: int) -> list[str]:
    if frames == 1:
        return []
    many = f"more than {containers.MOST_FRAMES}" if frames > containers.MOST_FRAMES else frames
    return [f"first of {many or 'several'} frames taken"]


def _to_rgb(image: Image.Image, space: Colours | None) -> _Decoded:
    flat, notes = _flatten(image)
    if isinstance(flat, Raster):
        pixels, more = flat.to_srgb(space)
        return pixels, notes + more
    converted, more = colours.to_srgb(flat, space)
    return np.array(converted), notes + more


def _flatten(image: Image.Image) -> tuple[Image.Image | Raster, list[str]]:
    """Convert any mode of Pillow to L, RGB, CMYK or LAB without transparency, or to samples."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        # Pillow scales PPM files to 16 bits.
        return Raster("L", np.asarray(image).astype(np.uint16)[..., None]), []
    if mode in ("I", "F"):
        values, notes = stretched(np.asarray(image)[..., None], 32)
        return Raster("L", values), notes
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    elif mode in ("P", "PA") or (mode == "RGB" and "transparency" in image.info):
        image = image.convert("RGBA")
    elif mode in ("1", "L") and "transparency" in image.info:
        image = image.convert("LA")
    if image.mode in ("LA", "RGBA"):
        # A profile for grey pixels fits them only as long as they are no colours.
        without, alpha = image.mode[:-1], image.getchannel("A").getextrema()
        if alpha == (0, 0) and image.format == "BMP":
            # Writers often leave the fourth byte of each pixel at 0, whatever the header says.
            return image.convert(without), ["alpha of 0 everywhere ignored"]
        if alpha == (255, 255):
            return image.convert(without), []
        white = Image.new(image.mode, image.size, "white")
        laid = Image.alpha_composite(white, image).convert(without)
        return laid, ["transparency laid on white"]
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, []
    return image.convert("L" if image.mode == "1" else "RGB"), []
