"""The names of picture files, which follow one rule in runs, renders, edits and exports.

A picture is named `IMAGE.LABEL.png`: the id of its image, and what it is, which is `aligned`,
`inverted`, `refined`, or the edit with its strength: `smile+2`, `yaw-0_5`, `smile_1+age_10`. The
names of an export may have neither folders nor further dots: `IMAGE-LABEL-CHECKSUM.png`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from dhr_batch.pipeline.files import shortened
from dhr_batch.pipeline.printable import printable
from dhr_batch.stages.edit import syntax

_UNSAFE = re.compile(r"[^\w+-]+")
# Bytes of a label, and of the parts of a flat name.
_LABEL, _PART = 160, 80


def edit_label(name: str, strength: float) -> str:
    """Return the label of an edit: its name and strength, in characters that folders may have.

    Letters of all scripts are kept, and runs of other characters become `_`.

    Args:
        name: Name of the edit as in the tables. That of several edits has their strengths.
        strength: Its strength.

    >>> edit_label("smile", 2), edit_label("улыбка", -0.5), edit_label("smile=1+age=10", 1)
    ('smile+2', 'улыбка-0_5', 'smile_1+age_10')
    """
    whole = syntax.names_all(name, strength)
    text = unicodedata.normalize("NFC", name if whole else f"{name}{strength:+g}")
    # `datasets` leaves out folders whose names begin with two `_`.
    return shortened(re.sub("^__+", "_", _UNSAFE.sub("_", text)), _LABEL)


def edit_labels(edits: Iterable[tuple[str, float]]) -> dict[tuple[str, float], str]:
    """Return the label of each edit, which is also its class in an export.

    Labels that would be the same, or the same but for the case of letters, which some file systems
    ignore, get a checksum of the edit.

    Args:
        edits: Name and strength of each edit.

    >>> edit_labels([("smile", 2.0), ("улыбка", 0.5)])
    {('smile', 2.0): 'smile+2', ('улыбка', 0.5): 'улыбка+0_5'}
    """
    names = {edit: edit_label(*edit) for edit in edits}
    counts = Counter(label.casefold() for label in names.values())
    return {
        edit: f"{label}-{digest(repr(edit))[:8]}" if counts[label.casefold()] > 1 else label
        for edit, label in names.items()
    }


def picture_file(image_id: str, label: str, extension: str = "png") -> str:
    """Return the path of a picture, with the folders of its id, as every file system allows it.

    Control codes are written as text. Long names are cut and end in a checksum, as do names with
    backslashes, which that text has. Ids that lead out of a folder, which archives may have, lose
    the first `/` and each `..`, and get a checksum as well.

    >>> picture_file("album/1.jpg", edit_label("smile", 2))
    'album/1.jpg.smile+2.png'
    """
    parts = f"{image_id}.{label}".split("/")
    below = [part for part in parts if part not in ("", ".", "..")]
    if below != parts:
        below[-1] += f"-{digest(ascii(image_id))[:8]}"
    return "/".join(map(_readable, below)) + f".{extension}"


def _readable(name: str) -> str:
    # A backslash and an n would be the name of a line feed as well.
    twin = f"-{digest(ascii(name))[:8]}" if "\\" in name else ""
    return shortened(printable(name) + twin)


def flat_name(image_id: str, label: str, checksum: str) -> str:
    """Return the name of a picture without folders, dots and extension.

    WebDataset takes dots for extensions. The checksum tells apart what is the same without them.

    >>> flat_name("album/1.jpg", "smile+2", "0d2f")
    'album_1_jpg-smile+2-0d2f'
    """
    image = shortened(_UNSAFE.sub("_", image_id), _PART)
    return f"{image}-{shortened(label, _PART)}-{checksum}"


def digest(text: str) -> str:
    """Return the hexadecimal sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
