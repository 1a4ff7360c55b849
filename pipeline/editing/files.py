"""The formats of the files of edits, and their writing."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.export import marks
from dhr_batch.pipeline.export.pictures import Picture
from dhr_batch.pipeline.printable import printable
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import listed
from dhr_batch.pipeline.tables.rows import edit_text, is_own, own_text, png
from dhr_batch.stages.edit import syntax
from dhr_batch.stages.record import EditedImage

# Space between two pictures side by side, in pixels.
_GAP = 8
# Milliseconds that a picture of an animation is shown, and the first and the last one.
_SHOWN, _HELD = 120, 600
_SOFTWARE, _DESCRIPTION = 0x0131, 0x010E


def write(files: Iterable[tuple[str, bytes]], folder: Path) -> Iterator[Path]:
    """Write pictures. Existing files are replaced only if dhr-batch has written them.

    Args:
        files: The name and content of each.
        folder: The folder to write to.

    Yields:
        The path of each file, once it is written.

    Raises:
        Refused: Other files with these names exist; all that do not are written.
        OSError: A file cannot be written.
    """
    storage, kept = connect(folder), []
    for name, content in files:
        found = storage.get(name)
        ours = found is None or is_own(found.content) or is_own_animation(found.content)
        if ours and storage.swap(name, content, found.version if found else None) is not None:
            yield folder / name
        else:
            kept.append(str(folder / name))
    if kept:
        plural = len(kept) > 1
        are, them, their = ("they are", "them", "their") if plural else ("it is", "it", "its")
        raise Refused(
            listed(kept),
            f"{are} not replaced, because dhr-batch did not write {them} or {their} content was "
            "changed since",
            f"move {them} away, or choose another folder with --out",
        )


def edited_png(pixels: np.ndarray, edit: EditedImage, name: str) -> bytes:
    """Return a picture of an edit with its metadata.

    Args:
        pixels: uint8 [H, W, 3].
        edit: The edit.
        name: Name of the photograph.
    """
    about = Picture(name, name, "edit", edit.name, edit.strength, None, None, {})
    return marks.as_stored(png(pixels, edit_text(edit) | own_text(pixels)), about)


def labels(pictures: Sequence[syntax.Terms]) -> list[str]:
    """Return the terms of each picture that are not in all of them."""
    shared = set.intersection(*map(set, pictures))
    return [syntax.joined(t for t in terms if t not in shared) for terms in pictures]


def row(pictures: Sequence[Image.Image], texts: Sequence[str] = ()) -> np.ndarray:
    """Return pictures of one size side by side, with a text below each, uint8 [H, W, 3]."""
    width, height = pictures[0].size
    font = ImageFont.load_default(16)
    size = (len(pictures) * (width + _GAP) - _GAP, height + (28 if texts else 0))
    made = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(made)
    for i, picture in enumerate(pictures):
        made.paste(picture, (i * (width + _GAP), 0))
        if texts:
            at = (i * (width + _GAP) + width / 2, height + 5)
            pen.text(at, printable(texts[i]), "black", font, anchor="ma")
    return np.asarray(made)


def animation(pictures: Sequence[Image.Image]) -> bytes:
    """Return pictures as an animated WebP that goes back and forth without end."""
    frames = [*pictures, *pictures[-2:0:-1]]
    shown = [_SHOWN] * len(frames)
    shown[0] = shown[len(pictures) - 1] = _HELD

    def encoded(exif: Image.Exif) -> bytes:
        stream = io.BytesIO()
        frames[0].save(
            stream, "WEBP", save_all=True, append_images=frames[1:], duration=shown, loop=0,
            quality=90, exif=exif.tobytes(),
        )  # fmt: skip
        return stream.getvalue()

    exif = Image.Exif()
    exif[_SOFTWARE] = "dhr-batch"
    # The pixels are known once they are encoded, as WebP changes them.
    exif[_DESCRIPTION] = f"edited by dhr-batch: {_digest(encoded(exif))}"
    return encoded(exif)


def is_own_animation(content: bytes) -> bool:
    """Whether a file is an animation of `animation` with unchanged pixels."""
    try:
        with Image.open(io.BytesIO(content), formats=("WEBP",)) as image:
            recorded = image.getexif().get(_DESCRIPTION, "")
        return recorded == f"edited by dhr-batch: {_digest(content)}"
    except (OSError, SyntaxError, ValueError):
        return False


def _digest(content: bytes) -> str:
    digest = hashlib.sha256()
    with Image.open(io.BytesIO(content), formats=("WEBP",)) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()[:32]
