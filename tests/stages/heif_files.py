"""A writer of HEIF containers for tests. Only their HEVC pictures are coded by a library."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pillow_heif

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full(kind: bytes, *content: bytes, version: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24), *content)


def nclx(primaries: int, transfer: int) -> bytes:
    # The matrix of BT.601 and the full range are those of the coded pictures.
    return box(b"colr", b"nclx", struct.pack(">HHHB", primaries, transfer, 6, 128))


def rotated(quarters: int) -> bytes:
    """A turn by so many quarters, anticlockwise."""
    return box(b"irot", bytes([quarters]))


def mirrored(axis: int) -> bytes:
    """0 exchanges top and bottom, 1 left and right."""
    return box(b"imir", bytes([axis]))


@dataclass
class Coded:
    """One HEVC picture.

    Attributes:
        properties: Boxes of its item, in order.
        data: The coded picture.
    """

    properties: list[bytes]
    data: bytes


def written(pixels: np.ndarray, **options: object) -> bytes:
    """A whole file of the library, without loss: uint8 or, for 10 bits, uint16 [H, W, channels]."""
    mode = MODES[pixels.shape[2]] + (";16" if pixels.dtype == np.uint16 else "")
    image = pillow_heif.from_bytes(
        mode, pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes()
    )
    stream = io.BytesIO()
    image.save(stream, quality=-1, chroma=444, **options)
    return stream.getvalue()


def coded(pixels: np.ndarray) -> Coded:
    """Code a picture of uint8 [H, W, 3]."""
    data = written(pixels)
    at = data.index(b"hvcC") - 4
    settings = data[at : at + int.from_bytes(data[at : at + 4], "big")]
    size = full(b"ispe", struct.pack(">II", *pixels.shape[1::-1]))
    return Coded([settings, size], data[data.index(b"mdat") + 4 :])


def heif(
    pictures: Sequence[Coded],
    primary: int = 0,
    exif: bytes = b"",
    brand: bytes = b"heic",
    kind: bytes = b"hvc1",
) -> bytes:
    """A file of pictures.

    Args:
        pictures: Its pictures.
        primary: The number of the main one.
        exif: A TIFF block for the main one.
        brand: Of the file.
        kind: The codec of the pictures.
    """
    contents = [picture.data for picture in pictures]
    kinds = [kind] * len(pictures)
    about = b""
    if exif:
        contents.append(bytes(4) + exif)
        kinds.append(b"Exif")
        about = full(b"iref", box(b"cdsc", struct.pack(">HHH", len(contents), 1, primary + 1)))
    shared = [each for picture in pictures for each in picture.properties]
    owned, first = struct.pack(">I", len(pictures)), 1
    for number, picture in enumerate(pictures, 1):
        last = first + len(picture.properties)
        # The bit of 128 says that a reader must know the property.
        owned += struct.pack(">HB", number, last - first)
        owned += bytes(128 + place for place in range(first, last))
        first = last
    entries = [
        full(b"infe", struct.pack(">HH", number, 0), each, b"\0", version=2)
        for number, each in enumerate(kinds, 1)
    ]

    def meta(start: int) -> bytes:
        places = struct.pack(">HH", 0x4400, len(contents))
        for number, content in enumerate(contents, 1):
            places += struct.pack(">HHHII", number, 0, 1, start, len(content))
            start += len(content)
        return full(
            b"meta",
            full(b"hdlr", bytes(4), b"pict", bytes(13)),
            full(b"pitm", struct.pack(">H", primary + 1)),
            full(b"iloc", places),
            full(b"iinf", struct.pack(">H", len(entries)), *entries),
            box(b"iprp", box(b"ipco", *shared), full(b"ipma", owned)),
            about,
        )

    head = box(b"ftyp", brand, bytes(4), b"mif1", b"heic")
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *contents)
