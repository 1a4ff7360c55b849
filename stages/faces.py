"""Several faces of one photograph: their ids, and the records of those after the largest.

The faces of a photograph are numbered from 0 by the area of their boxes, the largest first, and
equal ones in reading order. Face 0 has the id of the photograph; face k has the same and `#k`.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import replace

from dhr_batch.stages.record import Record

_FURTHER = re.compile(r"(.+)#([1-9][0-9]*)", re.DOTALL)


def face_id(photograph: str, number: int) -> str:
    """Return the id of a face.

    Args:
        photograph: The id of the photograph.
        number: The number of the face in it.

    Example:
        >>> face_id("team.jpg", 0), face_id("team.jpg", 2)
        ('team.jpg', 'team.jpg#2')
    """
    return f"{photograph}#{number}" if number else photograph


def parsed(image_id: str, photographs: Container[str]) -> tuple[str, int]:
    """Return the id of the photograph of a face, and the number of the face: undo `face_id`.

    Args:
        image_id: The id of the face.
        photographs: The ids of all photographs. One that looks like the id of a face is still the
            id of a photograph.

    Example:
        >>> parsed("team.jpg#2", {"team.jpg"}), parsed("shot#2", {"shot#2"})
        (('team.jpg', 2), ('shot#2', 0))
    """
    found = _FURTHER.fullmatch(image_id)
    if found is None or image_id in photographs:
        return image_id, 0
    return found[1], int(found[2])


def looks_like_a_face(image_id: str) -> str | None:
    """Return the id of the photograph of which `image_id` could be a further face, or None."""
    found = _FURTHER.fullmatch(image_id)
    return found[1] if found else None


def place(record: Record) -> tuple[str, int]:
    """Return the id of the photograph that a record is made of, and the number of its face.

    A record that is not one of several has its own id and 0, whichever face it shows.
    """
    if record.faces == 1:
        return record.image_id, 0
    return record.image_id.removesuffix(f"#{record.face_index}"), record.face_index


def further(record: Record, aligned: Record) -> list[Record]:
    """Return the records from which `align` cuts the faces after the first one of a photograph.

    They are to be aligned next, since `align` keeps only the last photograph. To get all faces:
    ``[first] = align.run([record])``, then ``[first, *align.run(further(record, first))]``.

    Args:
        record: The record of the photograph, with the content of its file.
        aligned: What `align` made of it.
    """
    return [
        replace(
            record,
            image_id=face_id(record.image_id, number),
            face_index=number,
            faces=aligned.faces,
        )
        for number in range(1, aligned.faces)
    ]
