"""Metadata that mark exported pictures as edited, in PNG, JPEG and WebP."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dhr_batch.pipeline.export.pictures import Picture
from dhr_batch.pipeline.printable import printable

Encoding = Literal["png", "jpeg", "webp"]
EXTENSIONS: dict[str, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_QUALITY = 95
# IPTC's term for pictures that a generative model has partly changed.
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
_XMP_KEY = "XML:com.adobe.xmp"
_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131
# The end of the header chunk of a PNG.
_IHDR_ENDS = 33


def comment(picture: Picture) -> str:
    """Return the comment that is stored in every format; empty for a photograph."""
    if picture.kind == "source":
        return ""
    if picture.kind == "refined":
        return "rendered by dhr-batch"
    return f"edited by dhr-batch: {picture.edit} {picture.strength:+g}"


def texts(picture: Picture) -> dict[str, str]:
    """Return keys and values of tEXt chunks. The keys are those of the pictures of a run."""
    found = {"Software": "dhr-batch", "Comment": comment(picture)}
    if picture.kind == "edit":
        found["dhr-batch:edit"] = picture.edit
        found["dhr-batch:strength"] = f"{picture.strength:g}"
    return found


def xmp(picture: Picture) -> str:
    """Return an XMP packet with IPTC's digital source type, the edit and its strength."""
    edit = ""
    if picture.kind == "edit":
        edit = f' dhr:edit={quoteattr(printable(picture.edit))} dhr:strength="{picture.strength:g}"'
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dhr="urn:dhr-batch:1" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'xmp:CreatorTool="dhr-batch" xmp:Label={quoteattr(printable(comment(picture)))} '
        f'Iptc4xmpExt:DigitalSourceType="{_SOURCE_TYPE}"{edit}/></rdf:RDF></x:xmpmeta>'
        '<?xpacket end="w"?>'
    )


def as_stored(data: bytes, picture: Picture) -> bytes:
    """Add the metadata to a PNG of a run without encoding its pixels again.

    Edited pictures of a run already have the tEXt chunks.
    """
    if picture.kind == "source":
        return data
    added = [] if picture.kind == "edit" else [_text_chunk(*t) for t in texts(picture).items()]
    added.append(_chunk(b"iTXt", _XMP_KEY.encode() + b"\0\0\0\0\0" + xmp(picture).encode()))
    return data[:_IHDR_ENDS] + b"".join(added) + data[_IHDR_ENDS:]


def _text_chunk(key: str, value: str) -> bytes:
    return _chunk(b"tEXt", key.encode("latin-1") + b"\0" + value.encode("latin-1"))


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def encode(pixels: np.ndarray, encoding: Encoding, picture: Picture) -> bytes:
    """Encode pixels with the metadata of a picture. JPEG and WebP have quality 95.

    Args:
        pixels: uint8 [H, W, 3].
        encoding: The format.
        picture: The picture.
    """
    image, stream = Image.fromarray(pixels), io.BytesIO()
    marked = picture.kind != "source"
    if encoding == "png":
        notes = PngInfo()
        if marked:
            for key, value in texts(picture).items():
                notes.add_text(key, value)
            notes.add_itxt(_XMP_KEY, xmp(picture))
        image.save(stream, "PNG", pnginfo=notes)
        return stream.getvalue()
    extra = {}
    if marked:
        exif = Image.Exif()
        exif[_DESCRIPTION], exif[_SOFTWARE] = comment(picture), "dhr-batch"
        extra = {"exif": exif.tobytes(), "xmp": xmp(picture).encode()}
    if encoding == "jpeg":
        # Chroma is not subsampled, so that a classifier cannot learn its artefacts.
        image.save(stream, "JPEG", quality=_QUALITY, subsampling=0, **extra)
    else:
        image.save(stream, "WEBP", quality=_QUALITY, **extra)
    return stream.getvalue()
