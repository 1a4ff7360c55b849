"""Small pictures in files of many parts: bounded by what is counted, not by the clock."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.pixels import containers, png

PICTURE = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))


def saved(kind: str, **options: bool) -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes) -> bytes:
    return struct.pack(">I4sI", 0, kind, zlib.crc32(kind))


JPEG, PNG, GIF = saved("JPEG", progressive=True), saved("PNG"), saved("GIF")
LAST_SCAN = JPEG[JPEG.rindex(b"\xff\xda") : -2]
TABLE = 13 + (3 << (GIF[10] & 7) + 1)
MANY = 3000
COSTLY = {
    "chunks of pixels": (PNG[:33] + chunk(b"IDAT") * MANY + PNG[33:], "parts|chunks"),
    "chunks of text": (PNG[:33] + chunk(b"tEXt") * MANY + PNG[33:], "chunks"),
    "comments of GIF": (GIF[:TABLE] + b"!\xfe\1a\0" * MANY + GIF[TABLE:], "parts"),
    "a comment of PPM": (b"P6 #" + b"x" * MANY + b"\n64 64 255\n" + bytes(64 * 64 * 3), "parts"),
    "spaces of PPM": (b"P6" + b" " * MANY + b"64 64 255\n" + bytes(64 * 64 * 3), "parts"),
    "comments of JPEG": (JPEG[:2] + b"\xff\xfe\0\2" * MANY + JPEG[2:], "parts"),
    "scans of JPEG": (JPEG[:-2] + LAST_SCAN * MANY + b"\xff\xd9", r"of \d+ scans .* save it again"),
    "scans of a cut JPEG": (JPEG[:-2] + LAST_SCAN * MANY, r"of \d+ scans"),
}


@pytest.mark.parametrize("case", COSTLY)
def test_files_of_too_many_parts_are_refused(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    content, said = COSTLY[case]
    monkeypatch.setattr(containers.Reads, "left", 1000)
    monkeypatch.setattr(png, "_MOST_CHUNKS", 1000)
    with pytest.raises(ImageError, match=said):
        decode(content)


@pytest.mark.parametrize("case", ["chunks of pixels", "comments of GIF", "a comment of PPM"])
def test_files_of_some_thousand_parts_are_read(case: str) -> None:
    assert decode(COSTLY[case][0])[0].shape == (64, 64, 3)


def test_pixels_are_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph has millions, which Pillow reads one by one in these formats."""
    rows = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    runs = b"".join(b"".join(b"\1%c" % value for value in row) + b"\0\0" for row in rows[::-1])
    start = 54 + 1024
    head = struct.pack("<2sIII", b"BM", start + len(runs), 0, start)
    head += struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 8, 1, len(runs), 0, 0, 256, 0)
    colours = b"".join(bytes((value, value, value, 0)) for value in range(256))
    monkeypatch.setattr(containers.Reads, "left", 1000)
    assert np.array_equal(decode(head + colours + runs + b"\0\1")[0][..., 0], rows)
    deep = (rows * 1023.0 / 255).round().astype(">u2")
    assert np.array_equal(decode(b"P5 64 64 1023\n" + deep.tobytes())[0][..., 0], rows)


def test_parts_behind_the_picture_are_not_counted_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    behind = GIF[:-1] + b"!\xfe" + b"\1a" * MANY + b"\0;"
    assert containers.gif_frames(behind) == 1
    monkeypatch.setattr(containers, "MOST_PARTS", 1000)
    assert decode(behind)[1] == ("first of several frames taken",)


@pytest.mark.parametrize("tail", [b"\xff" * MANY, b"\xff\0" * MANY, b"\xff\xd0" * MANY])
def test_what_fills_a_file_up_is_skipped(tail: bytes) -> None:
    """Byte by byte, a tail of 500 MB would take ten minutes."""
    whole, notes = decode(JPEG[:-2] + tail)
    assert np.array_equal(whole, decode(JPEG)[0])
    assert notes == ("JPEG end mark missing",)


def test_scans_behind_the_picture_do_not_count() -> None:
    """Videos and further pictures follow those of phones."""
    assert decode(JPEG + LAST_SCAN * MANY)[0].shape == (64, 64, 3)


def test_a_tag_of_another_type_is_damage() -> None:
    tags = [(256, 2, 1, 65), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, 64), (279, 4, 1, 4096)]
    content = struct.pack("<4sIH", b"II*\0", 8, len(tags))
    content += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(5000)
    with pytest.raises(ImageError) as caught:
        decode(content)
    assert caught.value.error_class == "damaged"
