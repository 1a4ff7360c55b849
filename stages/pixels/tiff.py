"""Samples of TIFF files, by what their tags say.

Pillow reads some forms as others: 16-bit planes as 8-bit ones, or white as black. Here tifffile and
imagecodecs read what is stored without loss, and Pillow JPEG of 8 bits and fax.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.pixels import DAMAGE
from dhr_batch.stages.pixels.colours import Colours
from dhr_batch.stages.pixels.raster import Raster, bounds, integers, scaled, stretched

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HINT = "convert it to PNG or to a TIFF file of 8 or 16 bits in RGB"

_LOSSLESS = {1, 5, 8, 32773, 32946, 34925, 50000}
_PLAIN = {1, 32773}
_PILLOW = {2, 3, 4, 6, 7}
# Mode and number of channels by photometric interpretation.
_MODES = {
    0: ("L", 1), 1: ("L", 1), 2: ("RGB", 3), 3: ("P", 1), 5: ("CMYK", 4), 6: ("YCbCr", 3),
    8: ("LAB", 3), 9: ("LAB", 3),
}  # fmt: skip
_KINDS = {1: "unsigned", 2: "signed", 3: "float", 4: "untyped", 5: "complex integer", 6: "complex"}
# Values without which 8-bit YCbCr means something else than Pillow's.
_YCBCR = {529: (0.299, 0.587, 0.114), 532: (0, 255, 128, 255, 128, 255)}
# Canon's raw photographs. `CR` alone may be the first pixel of a picture.
_CR2 = b"II*\0\x10\0\0\0CR\2"
_COLOUR_MAP, _ORIENTATION, _PROFILE, _PHOTOMETRIC, _INNER = 320, 274, 34675, 262, 330
# Statements on colours without a profile.
_IGNORED = {301: "transfer function", 319: "primaries"}
_MOST_CHANNELS = 8
_MOST_SEGMENTS = 2**16
_MOST_TILE = 2**24
_MOST_PREVIEWS = 16


class Page(NamedTuple):
    """The first full page of a file.

    Attributes:
        number: Its number, from 0.
        raster: Its samples; None if Pillow reads them.
        colours: Its ICC profile, or None.
        orientation: As in EXIF.
        notes: What was changed.
    """

    number: int
    raster: Raster | None
    colours: Colours | None
    orientation: int
    notes: list[str]


def read(data: bytes, check_size: Callable[[tuple[int, int]], None]) -> Page:
    """Read the first page that is neither a thumbnail nor a mask.

    Args:
        data: Content of the file.
        check_size: Raises if an image of some width and height must not be decoded.

    Raises:
        ImageError: `unsupported`, `truncated`, `damaged`, or what `check_size` raises.
        Exception: Others for damaged files.
    """
    import tifffile

    # Damage raises exceptions. What else is odd about tags does not belong into the log of a run.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    file = tifffile.TiffFile(io.BytesIO(data), is_lsm=False, is_scanimage=False, is_ndpi=False)
    with file:
        number, page = _first(file)
        check_size((page.imagewidth, page.imagelength))
        _refuse_raw(data, page)
        icc, notes = page.tags.valueof(_PROFILE), _meant(page)
        if icc is None:
            notes += [f"TIFF {name} ignored" for tag, name in _IGNORED.items() if tag in page.tags]
        raster = None
        if not _left_to_pillow(page):
            _check(page)
            samples = _samples(page, len(data))
            raster, more = _raster(page, samples)
            notes += more
        orientation = page.tags.valueof(_ORIENTATION, 1)
        space = None if icc is None else Colours(bytes(icc))
        if isinstance(orientation, bytes):
            orientation = int.from_bytes(orientation[:1])
        upright = orientation if isinstance(orientation, int) else 1
        return Page(number, raster, space, upright, notes)


def _first(file: Any) -> tuple[int, Any]:
    for number in range(_MOST_PREVIEWS):
        try:
            page = file.pages[number]
        except IndexError:
            break
        if not page.is_reduced and not page.is_mask:
            return number, page
    if not file.pages:
        raise ImageError("damaged", "the TIFF file has no page that can be read")
    raise _unsupported("the file has only thumbnails as pages (a raw photograph?)")


def _refuse_raw(data: bytes, page: Any) -> None:
    """Raise ImageError if a page is only the preview of a raw photograph."""
    size, larger = page.imagewidth * page.imagelength, False
    # Inner pages that are damaged do no harm.
    with suppress(*DAMAGE):
        inner = islice(page.pages, _MOST_PREVIEWS) if _INNER in page.tags else ()
        larger = any(
            not each.is_reduced and each.imagewidth * each.imagelength > size for each in inner
        )
    if larger or data.startswith(_CR2):
        raise _unsupported("a preview with the picture itself beside it (a raw photograph?)")


def _meant(page: Any) -> list[str]:
    """Set the meaning of the samples if the file does not state it well. Returns a note."""
    if _PHOTOMETRIC not in page.tags:
        fax = page.compression in (2, 3, 4)
        page.photometric = 2 if page.samplesperpixel > 2 else 0 if fax else 1
        return ["TIFF without the meaning of its samples"]
    extra = page.extrasamples
    if page.photometric == 1 and page.samplesperpixel > 2 and not any(extra[:2]):
        # GDAL writes colours of 16 bits like this.
        page.photometric, page.extrasamples = 2, extra[2:]
        return [f"TIFF of {page.samplesperpixel} grey channels taken for colours"]
    return []


def _left_to_pillow(page: Any) -> bool:
    eight = page.bitspersample in (1, 8) and page.sampleformat in (1, 4)
    if page.compression in _PILLOW and eight:
        return True
    return _subsampled(page) and page.compression != 1 and page.compression in _LOSSLESS and eight


def _subsampled(page: Any) -> bool:
    return page.photometric == 6 and page.is_subsampled


def _check(page: Any) -> None:
    """Refuse what is not read here. Raises ImageError."""
    kind, bits = int(page.sampleformat), page.bitspersample
    if page.compression not in _LOSSLESS:
        raise _unsupported(f"compression {_name(page.compression)} of {bits}-bit samples")
    if page.photometric not in _MODES:
        raise _unsupported(f"colours {_name(page.photometric)}")
    if page.dtype is None or kind not in (1, 2, 3, 4):
        raise _unsupported(f"{bits}-bit {_KINDS.get(kind, 'unknown')} samples")
    mode, channels = _MODES[page.photometric]
    deep = page.dtype.itemsize > (2 if mode in ("CMYK", "LAB") else 1) or kind in (2, 3)
    if (mode in ("CMYK", "LAB", "YCbCr") and deep) or (mode == "P" and kind in (2, 3)):
        raise _unsupported(f"{bits}-bit {_KINDS[kind]} samples in {mode}")
    if mode == "CMYK" and page.tags.valueof(332, 1) != 1:
        raise _unsupported("inks other than CMYK")
    if mode == "YCbCr" and (_subsampled(page) or not _usual_ycbcr(page)):
        raise _unsupported("YCbCr with subsampled or rescaled colours")
    if page.imagedepth != 1 or page.tiledepth > 1:
        raise _unsupported("volumes")
    if not channels <= page.samplesperpixel <= _MOST_CHANNELS:
        raise _unsupported(f"{page.samplesperpixel} channels in {mode}")
    segments = int(np.prod(page.chunked))
    if segments > _MOST_SEGMENTS or page.tilewidth * page.tilelength > _MOST_TILE:
        raise _unsupported(f"{segments} strips or tiles of {page.tilewidth} x {page.tilelength}")


def _usual_ycbcr(page: Any) -> bool:
    for code, usual in _YCBCR.items():
        value = page.tags.valueof(code)
        if value is not None:
            ratios = np.array(value, float).reshape(-1, 2)
            if not np.allclose(ratios[:, 0] / ratios[:, 1], usual, atol=0.002):
                return False
    return True


def _samples(page: Any, length: int) -> np.ndarray:
    """Return [H, W, channels]."""
    if page.compression in _PLAIN:
        # Some writers leave the tag of a predictor in files that have none.
        page.predictor = 1
    ends = [a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=False)]
    parts = int(np.prod(page.chunked))
    found = min(len(page.dataoffsets), len(page.databytecounts))
    if 0 in page.dataoffsets or 0 in page.databytecounts or found < parts:
        # tifffile fills them with zeros.
        raise ImageError("damaged", "strips or tiles of the TIFF file are missing")
    try:
        samples = page.asarray(squeeze=False, maxworkers=1)
    except Exception as error:
        if max(ends, default=0) > length:
            raise ImageError(
                "truncated", f"the file ends before its pixels do ({error})"
            ) from error
        raise
    planes, _, height, width, channels = samples.shape
    if planes == 1:
        return samples.reshape(height, width, channels)
    return np.moveaxis(samples[:, 0, :, :, 0], 0, -1)


def _raster(page: Any, stored: np.ndarray) -> tuple[Raster, list[str]]:
    mode, channels = _MODES[page.photometric]
    samples, bits = stored[..., :channels], int(page.bitspersample)
    wide, notes = page.sampleformat in (2, 3) or bits > 16, list[str]()
    if mode == "P":
        mode, values = "RGB", _coloured(page, samples[..., 0])
    elif mode == "LAB":
        values = samples if samples.dtype.itemsize == 1 else (samples >> 8).astype(np.uint8)
        if page.photometric == 9:
            # ICCLab has a and b with an offset, CIELab has them signed.
            values = values ^ np.array([0, 128, 128], np.uint8)
    else:
        values, notes = stretched(samples, bits) if wide else integers(samples, bits)
    if page.photometric == 0:
        values = np.iinfo(values.dtype).max - values
    raster = Raster(mode, values)
    kinds = page.extrasamples or ((2,) * (stored.shape[2] - channels))
    number = next((i for i, kind in enumerate(kinds) if kind in (1, 2, 999)), None)
    if number is not None and channels + number < stored.shape[2]:
        alpha = stored[..., channels + number]
        # Where the meaning of a further channel is not stated, nothing but zeros is no alpha.
        if page.extrasamples or alpha.any():
            raster.alpha = _alpha(alpha, page, samples, values.dtype.type)
            raster.premultiplied = kinds[number] == 1
    return raster, notes


def _alpha(alpha: np.ndarray, page: Any, colours: np.ndarray, kind: type) -> np.ndarray:
    bits = int(page.bitspersample)
    if page.sampleformat not in (2, 3) and bits <= 16:
        # Of a palette, the samples have fewer or more bits than the colours.
        return scaled(alpha, 2.0**bits - 1, kind)
    ends = [bounds(each, bits)[0] for each in (colours, alpha[..., None])]
    if page.sampleformat == 3 and alpha.min() > -0.25 and alpha.max() < 1.5:
        ends = [(0.0, 1.0)]
    # It reaches white of the colours, or more if they are all dark.
    black, white = max(ends, key=lambda end: end[1])
    return scaled(alpha, white, np.uint16, black)


def _coloured(page: Any, indices: np.ndarray) -> np.ndarray:
    table = np.asarray(page.tags.valueof(_COLOUR_MAP)).reshape(3, -1)
    # The values have 16 bits, but some writers store 8.
    table = table >> 8 if table.max() > 255 else table
    return table.T.astype(np.uint8)[indices.astype(np.intp)]


def _name(value: Any) -> str:
    return getattr(value, "name", str(value))


def _unsupported(what: str) -> ImageError:
    return ImageError("unsupported", f"TIFF files with this are not read: {what}; {HINT}")
