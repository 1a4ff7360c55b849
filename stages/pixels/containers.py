"""What Pillow does not read of containers: colour spaces, numbers of frames, missing ends."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from itertools import islice

from PIL import Image

from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.pixels import DAMAGE, colours, heif
from dhr_batch.stages.pixels.colours import Colours

# Counting goes through all frames, and a small file may have half a million.
MOST_FRAMES = 1000
_EXIF_TAG, _INTEROP_TAG, _COLOUR_SPACE_TAG = 0x8769, 0xA005, 0xA001
# Colour spaces of JPEG 2000 that are named by a number: CMYK, sRGB, grey and sYCC.
_KNOWN_SPACES = (12, 16, 17, 18)
_MOST_BOXES = 10_000
# Chunks, blocks or pieces of a header: large sound files have some 100,000.
MOST_PARTS = 2**21
# Each scan of a JPEG file takes a pass over all pixels. Files of many steps have some 20.
_MOST_SCANS = 200
_NESTED = {b"jp2h": 0, b"iprp": 0, b"ipco": 0, b"meta": 4}
# Markers of JPEG that have content, or end the file.
_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
_END = b"\xff\xd9"
_ICC_SEGMENT = b"ICC_PROFILE\0"


class Reads(io.BytesIO):
    """A file in memory that Pillow may read in `MOST_PARTS` pieces.

    Some of its parsers go through comments byte by byte, or through any number of empty chunks.

    Attributes:
        left: The number of pieces that are left.
    """

    left = MOST_PARTS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"it has more than {MOST_PARTS} parts")
        return super().read(size)


def stated_colours(image: Image.Image, data: bytes) -> Colours | None:
    """Return the colour space that the container states."""
    if icc := image.info.get("icc_profile"):
        return Colours(icc)
    segments = [a for name, a in _segments(image) if name == "APP2" and a[:12] == _ICC_SEGMENT]
    if segments:
        # Pillow gives no profile if one of its segments is missing, or is there twice.
        parts = {each[12]: each[14:] for each in segments if len(each) > 14}
        numbers = range(1, segments[0][13] + 1)
        return Colours(
            b"".join(parts.get(n, b"") for n in numbers) if {*numbers} <= {*parts} else b""
        )
    if image.format == "BMP" and len(data) >= 122 and data[14] in (108, 124):
        return _bmp_colours(data)
    if image.format == "HEIF":
        return heif.stated(image.info)
    if image.format == "AVIF":
        for kind, content in few_boxes(data):
            if kind == b"colr" and content[:4] == b"nclx":
                return colours.code_points(*struct.unpack_from(">HH", content, 4))
    if image.format != "JPEG2000" or (box := _colour_box(data)) is None:
        return None
    if box[0] in (2, 3):
        return Colours(bytes(box[3:]))
    space = named_space(data)
    if space not in (None, *_KNOWN_SPACES):
        what = f"JPEG 2000 files with the colour space {space} are not read"
        raise ImageError("unsupported", f"{what}; convert it to PNG")
    return None


def named_space(data: bytes) -> int | None:
    """Return the number of the colour space of a JPEG 2000 file; None if it states none."""
    box = _colour_box(data)
    return struct.unpack_from(">I", box, 3)[0] if box is not None and box[0] == 1 else None


def _colour_box(data: bytes) -> memoryview | None:
    """Return the first box of a JPEG 2000 file whose way of describing colours is known."""
    found = (content for kind, content in few_boxes(data) if kind == b"colr")
    return next((content for content in found if content[0] in (1, 2, 3)), None)


def _segments(image: Image.Image) -> list[tuple[str, bytes]]:
    return getattr(image, "applist", [])


def _bmp_colours(data: bytes) -> Colours | None:
    kind = data[70:74]
    if kind == b"DEBM" and data[14] == 124:
        start, size = struct.unpack_from("<II", data, 126)
        return Colours(data[14 + start : 14 + start + size])
    *ends, gamma = struct.unpack_from("<10i", data, 74)
    sums = [sum(ends[at : at + 3]) for at in (0, 3, 6)]
    if kind != bytes(4) or gamma <= 0 or min(sums) <= 0:
        # Most writers leave these fields empty.
        return None
    xy = [ends[at] / sums[at // 3] for at in (0, 1, 3, 4, 6, 7)]
    try:
        primaries = (*xy, *colours.SRGB[6:])
        return colours.described(primaries, gamma / 2**16, "colours of the BMP header")
    except (ArithmeticError, RuntimeError, ValueError):
        # They are no colours.
        return None


def exif(data: bytes) -> Image.Exif:
    """Return the EXIF data of a TIFF file."""
    found = Image.Exif()
    found.load(data)
    return found


def camera_colours(read: Callable[[], Image.Exif]) -> Colours | None:
    """Return Adobe RGB if the EXIF data of a camera say so, which add no profile then."""
    try:
        exif = read()
        space = exif.get_ifd(_EXIF_TAG).get(_COLOUR_SPACE_TAG)
        adobe = space == 2 or (space != 1 and exif.get_ifd(_INTEROP_TAG).get(1) == "R03")
    except DAMAGE:
        # Metadata that are broken do not decide about a picture.
        return None
    name = "Adobe RGB of the EXIF data"
    return colours.described(colours.ADOBE_RGB, 563 / 256, name) if adobe else None


def boxes(data: bytes | memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Iterate over the boxes of a JPEG 2000 or AVIF file, those in headers included."""
    view, at = memoryview(data), 0
    while at + 8 <= len(view):
        size, kind = struct.unpack_from(">I4s", view, at)
        head = 8
        if size == 1 and at + 16 <= len(view):
            size, head = struct.unpack_from(">Q", view, at + 8)[0], 16
        size = size or len(view) - at
        if size < head:
            return
        content = view[at + head : at + size]
        yield kind, content
        if kind in _NESTED:
            yield from boxes(content[_NESTED[kind] :])
        at += size


def few_boxes(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Iterate over as many boxes as sound files have before their pixels."""
    return islice(boxes(data), _MOST_BOXES)


def gif_frames(data: bytes) -> int:
    """Count the frames of a GIF file, up to `MOST_FRAMES` + 1; 0 if it has too many parts."""
    at, frames, parts = 13 + _table(data[10]), 0, 0
    while at < len(data) and frames <= MOST_FRAMES:
        if data[at] == 0x21:
            at += 2
        elif data[at] == 0x2C and at + 9 < len(data):
            frames += 1
            at += 11 + _table(data[at + 9])
        else:
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
            parts += 1
        at += 1
        parts += 1
        if parts > MOST_PARTS:
            return 0
    return frames


def _table(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def tiff_pages(data: bytes) -> int:
    """Count the pages of a TIFF file, up to `MOST_FRAMES` + 1."""
    order, big = "<" if data[:1] == b"I" else ">", data[2:4] in (b"+\0", b"\0+")
    offset, count, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    at, pages, known = 8 if big else 4, 0, set()
    try:
        while pages <= MOST_FRAMES:
            (page,) = struct.unpack_from(order + offset, data, at)
            if page == 0 or page in known:
                break
            known.add(page)
            (entries,) = struct.unpack_from(order + count, data, page)
            pages += 1
            at = page + struct.calcsize("=" + count) + entries * entry
    except struct.error:
        pass
    return pages


def has_end(jpeg: bytes) -> bool:
    """Whether a JPEG file has its end mark behind its last scan."""
    return jpeg.endswith(_END) or _scans(jpeg)[0]


def with_end(jpeg: bytes) -> tuple[bytes, ...]:
    """Return a JPEG file without its end mark twice, with different bytes behind its last scan.

    Both give the same pixels if the file has all of them: what follows the last block is skipped.

    Returns:
        Nothing if the file has not all scans of its picture.
    """
    # Copies of broken files are often filled up with zeros.
    body = jpeg.rstrip(b"\0")
    if body.endswith(b"\xff"):
        body += b"\0"
    return tuple(body + tail * 64 + _END for tail in (b"\x55", b"\xaa") if _scans(body)[1])


def check_scans(jpeg: bytes) -> None:
    """Raise ImageError if a JPEG file has so many scans that it takes minutes to decode."""
    # This pair of bytes is in no pixels, but often behind the picture.
    if jpeg.count(b"\xff\xda") > _MOST_SCANS and (scans := _scans(jpeg)[2]) > _MOST_SCANS:
        what = f"JPEG files of {scans} scans are not read, the limit is {_MOST_SCANS}"
        raise ImageError("unsupported", f"{what}; save it again")


def _scans(jpeg: bytes) -> tuple[bool, bool, int]:
    """Whether there is an end mark, whether each coefficient has all its bits, and the scans."""
    missing: dict[int, set[int]] = {}
    at, ended, scans = 2, False, 0
    # Pixels, and bytes that fill up, are skipped.
    while not ended and (marker := _SEGMENT.search(jpeg, at)):
        at = marker.start()
        kind, size = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        body = jpeg[at + 4 : at + 2 + size]
        ended = kind == _END[1]
        if kind in (0xC0, 0xC1, 0xC2) and len(body) > 5:
            missing = {part: set(range(64)) for part in body[6::3][: body[5]]}
        if kind == 0xDA and body and len(body) >= 4 + 2 * body[0]:
            scans += 1
            first, last, bits = body[1 + 2 * body[0] :][:3]
            for part in body[1 : 1 + 2 * body[0] : 2] if bits & 15 == 0 else b"":
                missing.get(part, set()).difference_update(range(first, last + 1))
        at += 2 + size
    return ended, bool(missing) and not any(missing.values()), scans
