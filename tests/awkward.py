"""A folder of twelve unusual image files: six show a face, six must be rejected."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

# File name -> class of the refusal; None where the face must be found.
EXPECTED: dict[str, str | None] = {
    "16bit.png": None,
    "cmyk.jpg": None,
    "rgba.png": None,
    "rotated_exif.jpg": None,
    "animated.gif": None,
    "Grüße_顔_ё.jpg": None,
    "truncated.jpg": "truncated",
    "text.png": "not_an_image",
    "empty.jpg": "empty",
    "no_face.png": "no_face",
    "8x8.png": "too_small",
    "80_megapixels.png": "too_large",
}


def write_awkward_folder(folder: Path, face: np.ndarray) -> dict[str, str | None]:
    """Write the twelve files into `folder` (made if missing).

    face: uint8 [H, W, 3], a photograph with one face. Returns file name -> class of the expected
    `ImageError`, None where the image must be processed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _contents(face).items():
        (folder / name).write_bytes(content)
    return dict(EXPECTED)


def _contents(face: np.ndarray) -> dict[str, bytes]:
    photo = Image.fromarray(face)
    jpeg = _encode(photo, "JPEG", quality=92)
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = np.full(face.shape[:2], 255, np.uint8)
    alpha[:24] = alpha[:, :24] = 0
    frames = [Image.new("RGB", photo.size, colour) for colour in ("black", "red")]
    return {
        "16bit.png": _png16(face),
        "cmyk.jpg": _encode(photo.convert("CMYK"), "JPEG", quality=92),
        "rgba.png": _encode(Image.fromarray(np.dstack([face, alpha])), "PNG"),
        "rotated_exif.jpg": _encode(
            photo.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=92, exif=exif
        ),
        "animated.gif": _encode(photo, "GIF", save_all=True, append_images=frames, duration=100),
        "Grüße_顔_ё.jpg": _encode(photo, "JPEG", quality=92, icc_profile=_profile()),
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "text.png": b"This is a text, not a picture.\n" * 20,
        "empty.jpg": b"",
        "no_face.png": _encode(_landscape(face.shape[0]), "PNG"),
        "8x8.png": _encode(photo.resize((8, 8)), "PNG"),
        "80_megapixels.png": _flat_png(10_000, 8_000),
    }


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _landscape(side: int) -> Image.Image:
    y, x = np.mgrid[:side, :side] / side
    hills = 0.6 + 0.1 * np.sin(7 * x) + 0.05 * np.sin(19 * x)
    sky, grass = np.array([120.0, 170, 230]), np.array([70.0, 120, 50])
    pixels = np.where((y < hills)[..., None], sky + 40 * y[..., None], grass - 30 * y[..., None])
    return Image.fromarray(pixels.astype(np.uint8))


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def _png(width: int, height: int, depth: int, colour: int, deflated: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", deflated), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _png16(rgb: np.ndarray) -> bytes:
    """PNG with 16 bits per channel, which Pillow reads but does not write."""
    height, width = rgb.shape[:2]
    rows = (rgb.astype(np.uint16) * 257).astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.pad(rows, ((0, 0), (1, 0)))
    return _png(width, height, 16, 2, zlib.compress(filtered.tobytes(), 6))


def _flat_png(width: int, height: int) -> bytes:
    """A small file with many pixels, compressed row by row to stay small in memory as well."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(width + 1)) for _ in range(height)]
    return _png(width, height, 8, 0, b"".join([*parts, packer.flush()]))
