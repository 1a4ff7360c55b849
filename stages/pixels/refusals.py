"""Why a file is not read, by its first bytes and by what its reader has raised."""

from __future__ import annotations

from PIL import Image

from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.pixels import DAMAGE, containers

# Pillow can open over 40 formats, for some of which it starts other programs (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
_CUT = ("truncat", "eof", "unexpected end", "incomplete")
_NOT_READ = (
    "unsupported", "not supported", "cannot handle", "not implemented", "image mode", "pixel mode",
    "security limit",
)  # fmt: skip

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"),
    (b"RIFF", "WEBP"), (b"\0\0\0\x0cjP  ", "JPEG2000"), (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
)  # fmt: skip
# Brands of files that `pillow-heif` and Pillow read.
_BRANDS = dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"), "HEIF") | {
    b"avif": "AVIF",
    b"avis": "AVIF",
}
_OTHER = (
    (b"%PDF", "PDF"), (b"%!PS", "PostScript"), (b"8BPS", "Photoshop"), (b"<svg", "SVG"),
    (b"\x00\x00\x01\x00", "ICO"), (b"v/1\x01", "OpenEXR"), (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"II\xbc\x01", "JPEG XR"), (b"#?RADIANCE", "Radiance"),
    (b"P7\n", "PAM"), (b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (b"\xff\xd8\xff\xe8\0 SPIFF", "JPEG-LS"),
)  # fmt: skip


def unidentified(data: bytes) -> ImageError:
    """Return the error for a file that no reader takes."""
    head = data.lstrip()[:16].lower()
    for magic, name in _OTHER:
        if data.startswith(magic) or head.startswith(magic.lower()):
            return ImageError("unsupported", f"{name} files are not read; {_convert_hint()}")
    for magic, name in _MAGIC:
        if data.startswith(magic) and len(data) > len(magic):
            return _unread(data, name)
    if data[4:8] == b"ftyp":
        if brand := _BRANDS.get(data[8:12]):
            return _unread(data, brand)
        return ImageError("unsupported", f"this HEIF or video file is not read; {_convert_hint()}")
    if data.startswith(b"version https://git-lfs"):
        return ImageError(
            "not_an_image",
            "the file is a pointer of Git LFS, not the picture itself; fetch it with: git lfs pull",
        )
    return ImageError(
        "not_an_image", f"the file is not an image of a known format; {_convert_hint()}"
    )


def _unread(data: bytes, name: str) -> ImageError:
    """Return the error for a file that begins like one of a format."""
    about = f"it begins like {name}, but its header cannot be read"
    try:
        with Image.OPEN[name][0](containers.Reads(data), ""):
            return ImageError("damaged", about)
    except DAMAGE as error:
        found = damaged(error)
        kind = found.error_class if found.error_class == "unsupported" else "damaged"
        return ImageError(kind, f"{about}: {found}")


def _convert_hint() -> str:
    return "convert it to one of: " + ", ".join(FORMATS)


def damaged(error: BaseException) -> ImageError:
    """Return the error for what a reader has raised."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if any(word in text.lower() for word in _CUT):
        return ImageError("truncated", f"the file ends too early ({text})")
    # A tag of another type raises "'>' not supported between instances", which is damage.
    if not isinstance(error, TypeError) and any(word in text.lower() for word in _NOT_READ):
        hint = _convert_hint()
        return ImageError("unsupported", f"this form of the format is not read ({text}); {hint}")
    return ImageError("damaged", f"the file cannot be decoded ({text})")
