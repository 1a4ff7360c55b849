"""Paste edits into photographs: one picture for all faces of a photograph with the same edit."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from dhr_batch.pipeline.export.gather import KINDS, Gathered
from dhr_batch.pipeline.export.pictures import Picture
from dhr_batch.pipeline.planning.photographs import Lost, Photographs
from dhr_batch.stages.paste_back import Crop, paste_all

Row = Mapping[str, Any]
# What identifies a row of the table `images`: image, kind, edit and strength.
Key = tuple[str, str, str, float]


@dataclass
class _Sheet:
    """A picture to be made, and what is known of its faces: place, refined and edited picture."""

    picture: Picture
    faces: int
    found: list[tuple[Row, Row | None]]


def together(gathered: Gathered) -> dict[Key, Picture]:
    """Replace the pictures of the faces of each photograph by one, with the id of the photograph.

    It has the labels of the largest face that passes the filters.

    Returns:
        The picture of each row of the table `images`.
    """
    groups: dict[Key, list[tuple[str, Picture]]] = defaultdict(list)
    for part, chosen in gathered.parts.items():
        for one in chosen:
            groups[one.source, one.kind, one.edit, one.strength].append((part, one))
    rows: dict[Key, Picture] = {}
    gathered.parts = {part: [] for part in gathered.parts}
    for members in groups.values():
        part, first = members[0]
        whole = replace(first, image_id=first.source)
        gathered.parts[part].append(whole)
        rows |= {(o.image_id, KINDS[o.kind], o.edit, o.strength): whole for _, o in members}
    return rows


class Pasting:
    """Makes the pictures of photographs from the rows of the table `images`.

    The rows of the faces of one photograph are held until all of them have come.

    Args:
        rows: As from `together`.
        chosen: The pictures to make.
        photographs: The photographs.
    """

    def __init__(
        self, rows: Mapping[Key, Picture], chosen: Iterable[Picture], photographs: Photographs
    ) -> None:
        sheets = {picture: _Sheet(picture, 0, []) for picture in chosen}
        self._sheets = {key: sheets[picture] for key, picture in rows.items() if picture in sheets}
        for sheet in self._sheets.values():
            sheet.faces += 1
        self._photographs = photographs
        self._refined: Row | None = None

    def add(self, row: Row) -> tuple[Picture, np.ndarray | str] | None:
        """Take a row. Returns the picture that it completes, or the reason why there is none."""
        if row["kind"] == "refined":
            self._refined = row
        key = (row["image_id"], row["kind"], row["edit_name"] or "", row["edit_strength"] or 0.0)
        sheet = self._sheets.get(key)
        if sheet is None:
            return None
        before = self._refined
        sheet.found.append((row, before if before and before["image_id"] == key[0] else None))
        if len(sheet.found) < sheet.faces:
            return None
        result = self._pasted(sheet)
        sheet.found.clear()
        return sheet.picture, result

    def _pasted(self, sheet: _Sheet) -> np.ndarray | str:
        edited = sheet.picture.kind == "edit"
        (first, _), *_ = sheet.found
        if any(row["quad"] is None for row, _ in sheet.found):
            return "place in the photograph not stored"
        if edited and any(refined is None for _, refined in sheet.found):
            return "no refined picture to compare with"
        size = (first["source_width"], first["source_height"])
        try:
            photograph = self._photographs.read(
                sheet.picture.source, size, first.get("source_sha256")
            )
            if not edited:
                return photograph
            return paste_all(photograph, [_crop(row, before or row) for row, before in sheet.found])
        except Lost as error:
            return str(error)
        except ValueError:
            return "stored place and pictures do not fit together"


def _crop(row: Row, before: Row) -> Crop:
    refined, edited = (pixels(one["image"]["bytes"]) for one in (before, row))
    return Crop(np.array(row["quad"]).reshape(4, 2), refined, edited)


def pixels(data: bytes) -> np.ndarray:
    """Decode a stored picture to uint8 [H, W, 3]. Raises Lost if it is damaged."""
    return opened(data, np.asarray)


def opened(data: bytes, use: Callable[[Image.Image], Any]) -> Any:
    """Open a stored picture and apply a function to it. Raises Lost if the picture is damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return use(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise Lost("stored picture cannot be read") from error
