"""Which of the pictures that pass are taken, and on which side of the split each falls."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.export.pictures import Picture, digest

TRAIN, VALIDATION = "train", "validation"
_TEXT = ("edit", "label")


def side(who: str, share: float, seed: int) -> str:
    """Train or validation, by a hash of whom it shows: other images never move it.

    share: of validation, 0 to 1.
    """
    at = int(digest(f"{seed}\n{who}")[:16], 16) / 2**64
    return VALIDATION if at < share else TRAIN


def person(source: str, pattern: str | None) -> str:
    """The part of a photograph's id that names the person; all of it without a pattern.

    Raises Refused where the pattern is not in it.
    """
    if pattern is None:
        return source
    found = re.search(pattern, source)
    name = found and found.group(found.re.groups and 1)
    # A group may take no part in a match.
    if name is None:
        raise Refused(f"--person {pattern!r} matches nothing in the id {source!r}")
    return str(name)


def parse_balance(text: str) -> tuple[str, int]:
    """`edit`, `label`, or a number of the labels and its bins, `score_smile:4`. Raises Refused."""
    name, colon, bins = text.partition(":")
    if text in _TEXT:
        return text, 0
    if name in ("effect", "identity") or name.startswith("score_"):
        if colon and bins.isdigit() and 2 <= int(bins) <= 1000:
            return name, int(bins)
        raise Refused(f"--balance {text}: give 2 to 1000 bins of this number, such as {name}:4")
    raise Refused(
        f"--balance {text!r}: choose edit, label, effect:BINS, identity:BINS or score_NAME:BINS"
    )


def balance(
    pictures: Mapping[Picture, str], by: tuple[str, int], seed: int
) -> tuple[set[Picture], int]:
    """As many pictures of each value as the rarest one has, in each split.

    pictures: with their split. by: a label and its bins, 0 where each value counts; bins are
    equally wide from the least to the greatest value of all, for effects of each edit, whose units
    differ; and those without pictures are no values. Returns the chosen pictures, and how many have
    no such number and are left out. Which ones are chosen depends on a hash of each picture and the
    seed.
    Raises Refused where no picture has a value.
    """
    name, bins = by
    values = {picture: _value(picture, name) for picture in pictures}
    known = {picture: value for picture, value in values.items() if value is not None}
    if not known:
        raise Refused(f"--balance {name}: no picture has this label")
    if bins:
        known = _binned(known, bins, apart=name == "effect")
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
    if name.startswith("score_"):
        return picture.scores.get(name)
    return getattr(picture, name)


def _binned(
    values: Mapping[Picture, float], bins: int, apart: bool
) -> dict[Picture, tuple[str, int]]:
    """apart: bins of each edit, not of all pictures."""
    groups: dict[str, dict[Picture, float]] = defaultdict(dict)
    for picture, value in values.items():
        groups[picture.edit if apart else ""][picture] = value
    found = {}
    for edit, group in groups.items():
        low, high = min(group.values()), max(group.values())
        width = (high - low) / bins or 1.0
        for picture, value in group.items():
            found[picture] = edit, min(int((value - low) / width), bins - 1)
    return found


def classes(pictures: Iterable[Picture]) -> list[str]:
    """The labels there are: photographs and refined pictures first, then edits by name."""
    found = {p.label: (p.kind == "edit", p.edit, p.strength, p.label) for p in pictures}
    return sorted(found, key=found.__getitem__)
