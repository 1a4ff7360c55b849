"""The choice of pictures among those that pass the filters, and their assignment to splits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.export.pictures import CHANGE, Picture
from dhr_batch.pipeline.picture_names import digest
from dhr_batch.stages.measure.face_scores import SCORE

TRAIN, VALIDATION = "train", "validation"
_TEXT = ("edit", "label")
_MEASURED = (SCORE, CHANGE)


def side(who: str, share: float, seed: int) -> str:
    """Assign a person or photograph to a split by a hash, so that it does not depend on others.

    Args:
        who: Name of the person or photograph.
        share: Share of the validation split, 0 to 1.
        seed: Seed of the assignment.

    Returns:
        `TRAIN` or `VALIDATION`.
    """
    position = int(digest(f"{seed}\n{who}")[:16], 16) / 2**64
    return VALIDATION if position < share else TRAIN


def person(source: str, pattern: str | None) -> str:
    """Return the part of a photograph's id that names the person.

    Args:
        source: The id.
        pattern: A regular expression. Its first group is the name, or the match if it has no group.
            With None, the whole id is the name.

    Raises:
        Refused: If the pattern does not match.
    """
    if pattern is None:
        return source
    found = re.search(pattern, source)
    name = found and found.group(found.re.groups and 1)
    # A group may be empty although the pattern matches.
    if name is None:
        raise Refused(
            f"--person {pattern!r}",
            f"it matches nothing in the id {source!r}",
            "give an expression that matches every id",
        )
    return str(name)


def parse_balance(text: str) -> tuple[str, int]:
    """Parse the value of `--balance`.

    Returns:
        The name of a label and its number of bins; 0 for `edit` and `label`, which have no bins.

    Raises:
        Refused: If the text has another form.

    >>> parse_balance("label"), parse_balance("score_smile:4")
    (('label', 0), ('score_smile', 4))
    """
    name, colon, bins = text.partition(":")
    if text in _TEXT:
        return text, 0
    if name in ("effect", "identity") or name.startswith(_MEASURED):
        if colon and re.fullmatch("[0-9]{1,4}", bins) and 2 <= int(bins) <= 1000:
            return name, int(bins)
        raise Refused(
            f"--balance {text}",
            "it needs a number of bins",
            f"give 2 to 1000 of them, such as {name}:4",
        )
    raise Refused(
        f"--balance {text!r}",
        "pictures cannot be balanced by it",
        "choose edit, label, effect:BINS, identity:BINS, score_NAME:BINS or change_NAME:BINS",
    )


def balance(
    pictures: Mapping[Picture, str], by: tuple[str, int], seed: int
) -> tuple[set[Picture], int]:
    """Choose equally many pictures of each value of a label, as many as the rarest value has.

    Every split is balanced separately. Pictures are chosen by a hash of the picture and the seed.

    Args:
        pictures: The split of each picture.
        by: A label and its number of bins, as from `parse_balance`. Bins have equal widths between
            the minimum and the maximum over all pictures, or over those of each edit for `effect`,
            because the effects of edits have different units. Empty bins are ignored.
        seed: Seed of the choice.

    Returns:
        The chosen pictures, and the number of pictures left out because they lack the label.

    Raises:
        Refused: If no picture has the label.
    """
    name, bins = by
    values = {picture: _value(picture, name) for picture in pictures}
    known = {picture: value for picture, value in values.items() if value is not None}
    if not known:
        raise Refused(f"--balance {name}", "no picture has this label", "choose another label")
    if bins:
        known = _binned(known, bins, per_edit=name == "effect")
    groups: dict[str, dict[Any, list[Picture]]] = defaultdict(lambda: defaultdict(list))
    for picture, value in known.items():
        groups[pictures[picture]][value].append(picture)
    chosen: set[Picture] = set()
    for split in groups.values():
        least = min(map(len, split.values()))
        for members in split.values():
            chosen.update(sorted(members, key=lambda p: digest(f"{seed}\n{p.digest}"))[:least])
    return chosen, len(values) - len(known)


def _value(picture: Picture, name: str) -> Any:
    if name.startswith(_MEASURED):
        return picture.measured().get(name)
    return getattr(picture, name)


def _binned(
    values: Mapping[Picture, float], bins: int, per_edit: bool
) -> dict[Picture, tuple[str, int]]:
    """Return edit and bin of each picture. per_edit: whether each edit has bins of its own."""
    groups: dict[str, dict[Picture, float]] = defaultdict(dict)
    for picture, value in values.items():
        groups[picture.edit if per_edit else ""][picture] = value
    found = {}
    for edit, group in groups.items():
        low, high = min(group.values()), max(group.values())
        width = (high - low) / bins or 1.0
        for picture, value in group.items():
            found[picture] = edit, min(int((value - low) / width), bins - 1)
    return found


def classes(pictures: Iterable[Picture]) -> list[str]:
    """Return the labels of the pictures, in the order in which torchvision numbers folders."""
    return sorted({picture.label for picture in pictures})
