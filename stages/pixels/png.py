"""The chunks of PNG files that decide about pixels. All others cannot make a picture unreadable."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.pixels import colours
from dhr_batch.stages.pixels.colours import Colours

MAGIC = b"\x89PNG\r\n\x1a\n"
# The largest profile or metadata, unpacked. A packed megabyte can hold a gigabyte.
_MOST_BYTES = 2**25
# Large sound files have some 100,000.
_MOST_CHUNKS = 2**21
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
_END = b"\0\0\0\0IEND\xaeB`\x82"


class Parts(NamedTuple):
    """A PNG file in parts.

    Attributes:
        pixels: A PNG file of the same pixels, with nothing else in it.
        depth: Bits per sample.
        colours: The colour space; None if it is not stated.
        info: Metadata with the orientation, as Pillow's `Image.info` names them.
        frames: The number of frames.
        notes: What was ignored.
    """

    pixels: bytes
    depth: int
    colours: Colours | None
    info: dict[str, Any]
    frames: int
    notes: list[str]


def read(data: bytes) -> Parts:
    """Take a PNG file apart.

    Raises:
        ImageError: `unsupported` for colours and forms that are not read.
    """
    pixels: list[bytes | memoryview] = [MAGIC]
    found: dict[bytes, tuple[bytes, memoryview]] = {}
    end = _END
    for kind, content, whole in _chunks(memoryview(data)):
        if kind == b"CgBI":
            raise ImageError(
                "unsupported", "this PNG has Apple's own packing (CgBI); save it again as PNG"
            )
        if kind in _PIXELS:
            pixels.append(whole)
            if kind == b"IDAT":
                _check_sum(whole)
            # An end behind a chunk that is cut off would be read as the rest of it.
            end = _END if len(whole) == 12 + int.from_bytes(whole[:4]) else b""
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = bytes(content[:80]).partition(b"\0")[0]
            if keyword in (_XMP, _RAW_EXIF):
                found.setdefault(keyword, (kind, content))
        else:
            found.setdefault(kind, (kind, content))
    depth = data[24] if len(data) > 24 else 8
    if depth in (2, 4) and data[25] == 0:
        pixels = [_scaled_key(chunk, depth) for chunk in pixels]
    stated = {key: value for key, (_, value) in found.items()}
    space, notes = _colours(stated)
    animation = stated.get(b"acTL", b"")
    frames = struct.unpack_from(">I", animation)[0] if len(animation) >= 8 else 1
    return Parts(b"".join([*pixels, end]), depth, space, _info(found), frames or 1, notes)


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Iterate over the chunks: kind, content and the whole chunk."""
    at, kind, parts = len(MAGIC), b"", 0
    while at + 8 <= len(data) and kind != b"IEND":
        parts += 1
        if parts > _MOST_CHUNKS:
            raise ValueError(f"it has more than {_MOST_CHUNKS} chunks")
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + size], data[at : at + 12 + size]
        at += 12 + size


def _check_sum(chunk: memoryview) -> None:
    """Raise ValueError if pixels are damaged. Pillow reads on, and gives other pixels."""
    size = len(chunk) - 4
    whole = size == 8 + int.from_bytes(chunk[:4])
    if whole and zlib.crc32(chunk[4:size]) != int.from_bytes(chunk[size:]):
        raise ValueError("the checksum of a chunk with pixels is wrong")


def _scaled_key(chunk: bytes | memoryview, depth: int) -> bytes | memoryview:
    """Scale the transparent grey of a file of 2 or 4 bits to 8 bits, as Pillow scales pixels."""
    if chunk[4:8] != b"tRNS" or len(chunk) != 14:
        return chunk
    key = struct.unpack_from(">H", chunk, 8)[0] * 255 // (2**depth - 1)
    body = b"tRNS" + struct.pack(">H", key)
    return struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))


def _colours(content: dict[bytes, memoryview]) -> tuple[Colours | None, list[str]]:
    """Return the colour space by the chunk that has precedence."""
    cicp = content.get(b"cICP", b"")
    if len(cicp) >= 4 and cicp[3] == 0:
        raise ImageError(
            "unsupported", "PNG files with samples of video range are not read; save it as sRGB"
        )
    if len(cicp) >= 2:
        return colours.code_points(*cicp[:2]), []
    if b"iCCP" in content:
        _, _, packed = bytes(content[b"iCCP"]).partition(b"\0")
        icc = _unpacked(packed[1:])
        if icc is None:
            return None, ["unreadable ICC profile ignored"]
        return Colours(icc), []
    if b"sRGB" in content:
        return colours.srgb(), []
    if len(content.get(b"gAMA", b"")) < 4:
        return None, ["PNG primaries without a gamma ignored"] if b"cHRM" in content else []
    gamma = struct.unpack_from(">I", content[b"gAMA"])[0] / 1e5
    if not 0.1 <= gamma <= 10:
        return None, [f"PNG gamma {gamma:g} ignored"]
    primaries = colours.SRGB
    if len(content.get(b"cHRM", b"")) >= 32:
        stored = [value / 1e5 for value in struct.unpack_from(">8I", content[b"cHRM"])]
        primaries = (*stored[2:], *stored[:2])
    try:
        return colours.described(primaries, 1 / gamma, f"PNG gamma {gamma:g}"), []
    except (ArithmeticError, RuntimeError, ValueError):
        return None, [f"PNG gamma {gamma:g} ignored: its primaries are no colours"]


def _info(found: dict[bytes, tuple[bytes, memoryview]]) -> dict[str, Any]:
    info: dict[str, Any] = {}
    if b"eXIf" in found:
        info["exif"] = b"Exif\0\0" + bytes(found[b"eXIf"][1])
    if _XMP in found and (xmp := _text(*found[_XMP])):
        info["xmp"] = xmp
    if _RAW_EXIF in found and (raw := _text(*found[_RAW_EXIF])):
        info["Raw profile type exif"] = raw.decode("latin-1")
    return info


def _text(kind: bytes, content: memoryview) -> bytes | None:
    """Return the value of a text chunk; None if it cannot be unpacked."""
    value = bytes(content).partition(b"\0")[2]
    if kind == b"tEXt":
        return value
    if kind == b"zTXt":
        return _unpacked(value[1:])
    packed, parts = value[:1] == b"\1", value[2:].split(b"\0", 2)
    return (_unpacked(parts[-1]) if packed else parts[-1]) if len(parts) == 3 else None


def _unpacked(packed: bytes) -> bytes | None:
    """Inflate, without what is behind `_MOST_BYTES`."""
    try:
        return zlib.decompressobj().decompress(packed, _MOST_BYTES)
    except zlib.error:
        return None
