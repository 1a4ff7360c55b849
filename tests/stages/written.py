"""Writers of TIFF, PNG, BMP and ICC made for tests, which share no code with any decoder."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

SRGB_XY = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3_XY = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
WHITE_XY = (0.3127, 0.3290)
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


def truth(height: int = 20, width: int = 28) -> np.ndarray:
    """A picture whose corners all differ, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([20 + x * 8, 20 + y * 11, 235 - x * 4 - y * 5], -1).astype(np.uint8)


def to_light(levels: np.ndarray) -> np.ndarray:
    """The light of sRGB values of 0..1."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def from_light(light: np.ndarray) -> np.ndarray:
    """The sRGB values of light of 0..1."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def to_xyz(primaries: Sequence[tuple[float, float]]) -> np.ndarray:
    """The matrix from linear RGB to XYZ, for a white of D65."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    x, y = WHITE_XY
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


def as_srgb(levels: np.ndarray, primaries: Sequence[tuple[float, float]], gamma: float):
    """What samples of 0..1 in some colour space are in sRGB, 0..255."""
    matrix = np.linalg.inv(to_xyz(SRGB_XY)) @ to_xyz(primaries)
    return from_light(levels**gamma @ matrix.T) * 255


def icc(
    primaries: Sequence[tuple[float, float]], gamma: float, name: str = "sRGB of a test"
) -> bytes:
    """A profile of version 2 with three primaries and a gamma."""
    x, y = WHITE_XY
    white = np.array([x / y, 1, (1 - x - y) / y])
    scale = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    columns = np.linalg.inv(_BRADFORD) @ scale @ _BRADFORD @ to_xyz(primaries)
    return _profile(
        name, b"RGB ", gamma, dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns.T, strict=True))
    )


def grey_icc(gamma: float) -> bytes:
    """A profile of a grey scale."""
    return _profile("grey of a test", b"GRAY", gamma, {})


def _profile(name: str, space: bytes, gamma: float, columns: dict[bytes, np.ndarray]) -> bytes:
    def fixed(values: Sequence[float]) -> bytes:
        return b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)

    text = name.encode() + b"\0"
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)}
    tags |= {b"cprt": b"text\0\0\0\0none\0", b"wtpt": b"XYZ \0\0\0\0" + fixed(_D50)}
    tags |= {key: b"XYZ \0\0\0\0" + fixed(column) for key, column in columns.items()}
    curves = (b"kTRC",) if space == b"GRAY" else (b"rTRC", b"gTRC", b"bTRC")
    tags |= dict.fromkeys(curves, curve)
    at, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for key, value in tags.items():
        table += key + struct.pack(">II", at + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    head = struct.pack(">I", at + len(content)) + b"test\x02\x10\0\0mntr" + space + b"XYZ "
    head += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(_D50)
    return head.ljust(128, b"\0") + table + content


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples as bits, each row filled up to whole bytes. values: [rows, samples]."""
    digits = (values[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(samples: np.ndarray, bits: int, colour_type: int, *chunks: bytes) -> bytes:
    """A PNG file of samples [H, W, channels]."""
    height, width = samples.shape[:2]
    rows = (b"\0" + packed(row.reshape(1, -1), bits) for row in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(b"".join(rows)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IEND", b"")])


def tiff(
    samples: np.ndarray,
    photometric: int,
    *,
    bits: int = 0,
    order: str = "<",
    layout: str = "chunky",
    deflate: bool = False,
    predictor: bool = False,
    tags: dict[int, tuple[str, Sequence]] | None = None,
) -> bytes:
    """One page of samples [H, W, channels].

    bits: of unsigned samples that do not fill their type. layout: `chunky` (two strips), `planar`
    or `tiled` (16 x 16). predictor: differences of neighbours, for whole integers. tags: others, by
    number, with the letter of `struct` and the values.
    """
    height, width, channels = samples.shape
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    planes = [samples[..., i : i + 1] for i in range(channels)] if layout == "planar" else [samples]
    segments = [part for plane in planes for part in _parts(plane, layout == "tiled")]
    stored = [_stored(part, bits, order, predictor) for part in segments]
    stored = [zlib.compress(part) for part in stored] if deflate else stored
    entries: dict[int, tuple[str, Sequence]] = {
        256: ("I", [width]), 257: ("I", [height]),
        258: ("H", [bits or 8 * samples.itemsize] * channels), 259: ("H", [8 if deflate else 1]),
        262: ("H", [photometric]), 277: ("H", [channels]),
        284: ("H", [2 if layout == "planar" else 1]), 317: ("H", [2 if predictor else 1]),
        339: ("H", [kind] * channels), **(tags or {}),
    }  # fmt: skip
    place, count = (324, 325) if layout == "tiled" else (273, 279)
    entries |= (
        {322: ("I", [16]), 323: ("I", [16])} if layout == "tiled" else {278: ("I", [_rows(height)])}
    )
    entries |= {place: ("I", [0] * len(stored)), count: ("I", [len(part) for part in stored])}
    start = 8 + 2 + 12 * len(entries) + 4
    sizes = {tag: struct.calcsize(code) * len(values) for tag, (code, values) in entries.items()}
    at = start + sum(size + size % 2 for size in sizes.values() if size > 4)
    offsets = [at + sum(map(len, stored[:number])) for number in range(len(stored))]
    directory, extra = struct.pack(order + "H", len(entries)), b""
    for tag, (code, values) in sorted(entries.items()):
        values = offsets if tag == place else values
        content = struct.pack(order + code * len(values), *values)
        if len(content) > 4:
            where = struct.pack(order + "I", start + len(extra))
            extra += content + bytes(len(content) % 2)
        else:
            where = content.ljust(4, b"\0")
        number = {"B": 7, "H": 3, "I": 4}[code]
        directory += struct.pack(order + "HHI", tag, number, len(values)) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + directory + bytes(4) + extra + b"".join(stored)


def _rows(height: int) -> int:
    return (height + 1) // 2


def _parts(plane: np.ndarray, tiled: bool) -> list[np.ndarray]:
    height, width = plane.shape[:2]
    if not tiled:
        return [plane[: _rows(height)], plane[_rows(height) :]]
    padded = np.pad(plane, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    corners = [(y, x) for y in range(0, height, 16) for x in range(0, width, 16)]
    return [padded[y : y + 16, x : x + 16] for y, x in corners]


def _stored(part: np.ndarray, bits: int, order: str, predictor: bool) -> bytes:
    if bits and bits != 8 * part.itemsize:
        return packed(part.reshape(len(part), -1), bits)
    if predictor:
        part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))
    return np.ascontiguousarray(part).astype(part.dtype.newbyteorder(order)).tobytes()
