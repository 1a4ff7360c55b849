"""The syntax of edits in a text: ``smile=2``, ``yaw=15deg``, ``smile=1+age=10``.

A term is ``NAME=STRENGTH``, with a unit behind the number if it is not that of the direction. Terms
joined by ``+`` are edits of one picture. Where several pictures may be named, a term may have
several strengths: ``smile=-1,0.5,1``, or ``smile=-2:2:5`` for five from -2 to 2. Strengths of
several terms are combined each with each.

A name may contain ``=`` and ``+``, as paths of files do: it ends at the first ``=`` behind which
there are strengths. A text names at most `MOST` pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

from dhr_batch.stages.registry import InvalidInput

# The unit of degrees behind a number. A number without a unit has that of its direction.
DEGREES = "deg"
# The scorer that measures degrees, and its score of each axis.
SCORER = "mesh"
AXES = {"yaw": "yaw_mesh", "pitch": "pitch_mesh", "roll": "roll_mesh"}
# A text that names more pictures is refused: it is a slip, and would fill memory and disk.
MOST = 500
# A channel of StyleSpace.
_CHANNEL = re.compile(r"([+-]?)([A-Za-z0-9_.]{1,99})/([0-9]{1,9})")

_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_ONE = rf"{_NUMBER}(?:{DEGREES})?"
_ITEM = rf"{_ONE}(?::{_ONE}:[0-9]+)?"
_TERM = re.compile(rf"\s*(?P<name>\S.*?)\s*=\s*(?P<items>{_ITEM}(?:,{_ITEM})*)\s*(?P<more>\+|$)")


class NotAnEdit(InvalidInput):
    """A text does not name edits. The reason does not repeat the text."""


class Channel(NamedTuple):
    """A channel of StyleSpace.

    Attributes:
        sign: 1 or -1, the sign of a positive strength.
        layer: The name of a layer, or its number in the published order.
        number: Number of the channel, from 0.
    """

    sign: int
    layer: str
    number: int

    @classmethod
    def parse(cls, text: str) -> Channel:
        """Parse for example ``6/501`` or ``-convs.3/17``.

        Raises:
            ValueError: The text has another form.
        """
        match = _CHANNEL.fullmatch(text.strip())
        if not match:
            raise ValueError(
                f"{text!r} is not a channel; write LAYER/CHANNEL, for example 6/501 or convs.3/501"
            )
        return cls(-1 if match[1] == "-" else 1, match[2], int(match[3]))

    def __str__(self) -> str:
        return f"{'-' if self.sign < 0 else ''}{self.layer}/{self.number}"


class Term(NamedTuple):
    """One edit at one strength.

    Attributes:
        name: A shipped name or a file.
        strength: How far to go.
        unit: `DEGREES`, or empty for the unit of the direction.
    """

    name: str
    strength: float
    unit: str = ""

    def __str__(self) -> str:
        return f"{self.name}={self.strength:g}{self.unit}"


Terms = tuple[Term, ...]


def parse(text: str) -> Terms:
    """Return the terms of the edits of one picture.

    Raises:
        NotAnEdit: The text has another form, or names an edit twice.

    Example:
        >>> parse("smile=1+yaw=-10deg")[1]
        Term(name='yaw', strength=-10.0, unit='deg')
    """
    found = _pictures(text, "STRENGTH", "smile=2")
    if len(found) > 1:
        raise _malformed("STRENGTH", "smile=2")
    return found[0]


def parse_all(text: str) -> list[Terms]:
    """Return the pictures that a text names, each by the terms of its edits.

    Raises:
        NotAnEdit: The text has another form, names an edit of a picture twice, or names more than
            `MOST` pictures.

    Example:
        >>> list(map(joined, parse_all("smile=1,2+yaw=15deg")))
        ['smile=1+yaw=15deg', 'smile=2+yaw=15deg']
    """
    example = "smile=2, smile=-1,0.5,1 for three strengths, smile=-2:2:5 for five from -2 to 2"
    return _pictures(text, "STRENGTHS", example)


def joined(terms: Iterable[Term | str]) -> str:
    """Return the text of the edits of one picture from its terms, or from their texts."""
    return "+".join(map(str, terms))


def settings(pictures: Iterable[Terms]) -> list[dict[str, Any]]:
    """Return the edits of pictures as settings, as in `edit.edits` of a configuration.

    Pictures of the same single edit become one edit with several strengths.

    Example:
        >>> settings([parse("smile=1"), parse("smile=2")])
        [{'direction': 'smile', 'strengths': [1.0, 2.0]}]
        >>> settings([parse("smile=1+yaw=15deg")])[0]["combined"][1]
        {'direction': 'yaw', 'unit': 'deg', 'strengths': [15.0]}
    """
    singles: dict[tuple[str, str], dict[float, None]] = {}
    several: dict[Terms, None] = {}
    for terms in pictures:
        if len(terms) > 1:
            several[terms] = None
        else:
            (name, strength, unit) = terms[0]
            singles.setdefault((name, unit), {})[strength] = None
    found: list[dict[str, Any]] = [
        {"direction": name} | ({"unit": unit} if unit else {}) | {"strengths": list(strengths)}
        for (name, unit), strengths in singles.items()
    ]
    return found + [{"combined": [settings([(t,)])[0] for t in terms]} for terms in several]


def names_all(name: str, strength: float) -> bool:
    """Whether the name of an edit in tables has its strengths as well, as that of several has.

    Example:
        >>> names_all("smile=1+age=10", 1), names_all("smile=1+age=10", 0.5), names_all("smile", 1)
        (True, False, False)
    """
    try:
        return strength == 1 and len(parse(name)) > 1
    except NotAnEdit:
        return False


def _malformed(form: str, example: str) -> NotAnEdit:
    return NotAnEdit(
        f"it is not of the form NAME={form}",
        f"a strength is a number; write for example {example}, or smile=1+yaw=15deg for two edits "
        "in one picture",
    )


def _pictures(text: str, form: str, example: str) -> list[Terms]:
    choices: list[list[Term]] = []
    at, more = 0, "+"
    while more:
        match = _TERM.match(text, at)
        items = [_numbers(item) for item in match["items"].split(",")] if match else []
        found = [number for numbers in items for number in numbers]
        if not match or not all(math.isfinite(number) for number, _ in found):
            raise _malformed(form, example)
        choices.append([Term(match["name"], *number) for number in dict.fromkeys(found)])
        at, more = match.end(), match["more"]
    names = [terms[0].name for terms in choices]
    if len(set(names)) < len(names):
        raise NotAnEdit("it names an edit of one picture twice", "add up its strengths")
    if math.prod(map(len, choices)) > MOST:
        raise _too_many()
    return list(product(*choices))


def _too_many() -> NotAnEdit:
    return NotAnEdit(
        f"it names more than {MOST} pictures",
        "give fewer strengths: smile=-2:2:9 are nine from -2 to 2",
    )


def _numbers(item: str) -> list[tuple[float, str]]:
    """Return the numbers of an item with their units.

    An item is one number, or a range of evenly spaced numbers that includes both ends. These are
    rounded to 6 decimals, so that the middle of a symmetric range is 0.
    """
    first, *rest = item.split(":")
    begin, unit = _number(first)
    if not rest:
        return [(begin + 0.0, unit)]
    (end, other), count = _number(rest[0]), int(rest[1][:9])
    if count < 2:
        why = "a range FIRST:LAST:COUNT has a count of at least 2"
        raise NotAnEdit(why, f"give more, or one strength alone: NAME={first}")
    if other != unit:
        raise NotAnEdit(
            f"one end of a range has the unit {DEGREES} and the other none", "give both the same"
        )
    if count > MOST:
        raise _too_many()
    step = (end - begin) / (count - 1)
    return [(round(begin + step * i, 6) + 0.0, unit) for i in range(count)]


def _number(text: str) -> tuple[float, str]:
    number = text.removesuffix(DEGREES)
    return float(number), text[len(number) :]
