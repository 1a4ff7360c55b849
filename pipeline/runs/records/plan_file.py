"""The text of `plan.json`: its checksum, readable settings, and one line per shard.

A run may have a million images in 30,000 shards. One line per shard keeps the file readable, and
allows a row to be parsed on its own.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, overload

from dhr_batch.pipeline import sealed
from dhr_batch.pipeline.runs.records import versions
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan

_LONG = ("shards", "contents")
_END = b"\n ]"


class Rows(Sequence[list[Any]]):
    """A sequence with one list per shard, which parses a row each time it is accessed.

    A million ids as Python strings would take four times the memory of the text. Rows can be
    replaced; the new ones are kept beside the text.

    Args:
        text: The content of `plan.json`.
        ends: The offset in the text of each row, and the offset of the end of the last row.
    """

    def __init__(self, text: bytes, ends: array[int]) -> None:
        self._text, self._ends = text, ends
        self._changed: dict[int, list[Any]] = {}

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> list[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Any]]: ...
    def __getitem__(self, index: int | slice) -> list[Any]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index in self._changed:
            return self._changed[index]
        row = json.loads(self._text[self._ends[index] : self._ends[index + 1]].rstrip(b",\n "))
        if not isinstance(row, list):
            raise ValueError(f"row {index} is not a list")
        return row

    def __setitem__(self, index: int, row: list[Any]) -> None:
        self._changed[range(len(self))[index]] = row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def dumps(plan: StoredPlan) -> bytes:
    """Return a plan as JSON. The lists of shards come last, with one line per shard."""
    return sealed.seal(line.encode() for line in _lines(plan))


def _lines(plan: StoredPlan) -> Iterator[str]:
    head = replace(plan, shards=(), contents=None).to_json()
    del head["shards"]
    yield json.dumps(head, ensure_ascii=False, indent=1).removeprefix("{").removesuffix("\n}")
    for key in _LONG:
        if (lists := getattr(plan, key)) is not None:
            yield f',\n "{key}": ['
            for number, row in enumerate(lists):
                yield (",\n  " if number else "\n  ") + json.dumps(row, ensure_ascii=False)
            yield "\n ]"
    yield "\n}\n"


def loads(text: bytes, place: str = "the run") -> StoredPlan:
    """Parse a plan. The lists of shards become `Rows` if the text has the layout of `dumps`.

    Args:
        text: The content of `plan.json`.
        place: The run, for messages.

    Raises:
        sealed.Changed: If the text does not match its checksum.
        ValueError: If the text is not a JSON object, or its lists do not match each other.
        Refused: If the run was made by a newer version of dhr-batch.
    """
    with sealed.damage():
        try:
            return _checked(_parse_lines(text), text, place)
        except sealed.Changed:
            raise
        except ValueError:
            # The text has another layout, or is damaged. Parsing it as a whole gives the best
            # message.
            plan = json.loads(text)
            if not isinstance(plan, dict):
                raise ValueError("not a JSON object") from None
            return _checked(plan, text, place)


def identity(text: bytes) -> str:
    """Return the identity of the run, without a check of the text; "" if it has none."""
    try:
        with sealed.damage():
            end = text.find(f',\n "{_LONG[0]}": ['.encode())
            return str(json.loads(text if end < 0 else text[:end] + b"\n}").get("run", ""))
    except ValueError:
        # Whoever reads the plan as a whole reports the damage.
        return ""


def _checked(plan: dict[str, Any], text: bytes, place: str) -> StoredPlan:
    _check_lists(plan)
    sealed.check(text, plan)
    versions.check(plan, place)
    return StoredPlan.from_json(plan)


def _check_lists(plan: dict[str, Any]) -> None:
    """Parse every row, so that damage is reported now and not in the middle of a run."""
    lists = {key: plan[key] for key in _LONG if key in plan}
    for key, rows in lists.items():
        if not isinstance(rows, Rows | list):
            raise ValueError(f"{key} is not a list")
    for number, rows in enumerate(zip_longest(*lists.values())):
        for key, row in zip(lists, rows, strict=True):
            if not isinstance(row, list):
                raise ValueError(f"{key} has no row {number}, or the row is not a list")
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"row {number} has different lengths in {' and '.join(lists)}")


def _parse_lines(text: bytes) -> dict[str, Any]:
    """Parse a text with the layout of `dumps`. Raises ValueError for any other text."""
    starts = [text.index(f',\n "{key}": ['.encode()) for key in _LONG]
    plan = json.loads(text[: starts[0]] + b"\n}")
    ends = [starts[1], text.rindex(b"\n}")]
    if text[ends[1] :].strip() != b"}":
        raise ValueError("there is more text after the plan")
    for key, start, end in zip(_LONG, starts, ends, strict=True):
        if not text.endswith(_END, start, end):
            raise ValueError(f"{key} does not have one line per shard")
        plan[key] = Rows(text, _row_ends(text, start + len(f',\n "{key}": ['), end - len(_END)))
    return plan


def _row_ends(text: bytes, first: int, last: int) -> array[int]:
    ends = array("Q")
    while first < last:
        ends.append(first)
        # A line break always ends a row: within strings, JSON writes it as two characters.
        first = text.find(b"\n", first + 1, last)
        if first < 0:
            break
    ends.append(last)
    return ends
