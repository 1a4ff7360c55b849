"""The text of `plan.json`: readable settings, then one line per shard, as there may be 30,000."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, overload

from dhr_batch.pipeline.runs import versions
from dhr_batch.pipeline.runs.stored_plan import StoredPlan

_LONG = ("shards", "contents")
_END = b"\n ]"


class Rows(Sequence[list[Any]]):
    """A list per shard, read from the text when it is asked for: a million ids as strings would
    take four times the room of the text. One row may be put in place of another."""

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
            raise ValueError(f"row {index} is no list")
        return row

    def __setitem__(self, index: int, row: list[Any]) -> None:
        self._changed[range(len(self))[index]] = row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def dumps(plan: StoredPlan) -> bytes:
    """A plan as JSON. Lists of shards are written a line each, and last."""
    content = plan.to_json()
    head = {key: value for key, value in content.items() if key not in _LONG}
    text = io.BytesIO()
    text.write(json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}").encode())
    for line in _lines(content):
        text.write(line.encode())
    text.write(b"\n}\n")
    return text.getvalue()


def _lines(plan: dict[str, Any]) -> Iterator[str]:
    for key in _LONG:
        if key in plan:
            yield f',\n "{key}": ['
            for number, row in enumerate(plan[key]):
                yield (",\n  " if number else "\n  ") + json.dumps(row, ensure_ascii=False)
            yield "\n ]"


def loads(text: bytes, place: str = "the run") -> StoredPlan:
    """A plan from its JSON; the lists of shards are `Rows` where it was written by `dumps`.

    Args:
        text: content of `plan.json`.
        place: the run, for messages.

    Raises:
        ValueError: this is no JSON object, or its lists do not fit together.
        Refused: the run was made by a newer program.
    """
    try:
        plan = _by_lines(text)
        versions.check(plan, place)
        _check_lists(plan)
    except ValueError:
        # Written by something else, or damaged, which is told best where all is read.
        plan = json.loads(text)
        if not isinstance(plan, dict):
            raise ValueError("not a JSON object") from None
        versions.check(plan, place)
        _check_lists(plan)
    return StoredPlan.from_json(plan)


def _check_lists(plan: dict[str, Any]) -> None:
    """Reads every row, so that damage is told now, not in the middle of what they are for."""
    lists = {key: plan[key] for key in _LONG if key in plan}
    for key, rows in lists.items():
        if not isinstance(rows, Rows | list):
            raise ValueError(f"{key} is no list")
    for number, rows in enumerate(zip_longest(*lists.values())):
        for key, row in zip(lists, rows, strict=True):
            if not isinstance(row, list):
                raise ValueError(f"{key} has no row {number}, or it is no list")
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"the rows {number} of {' and '.join(lists)} differ in length")


def _by_lines(text: bytes) -> dict[str, Any]:
    starts = [text.index(f',\n "{key}": ['.encode()) for key in _LONG]
    plan = json.loads(text[: starts[0]] + b"\n}")
    ends = [starts[1], text.rindex(b"\n}")]
    if text[ends[1] :].strip() != b"}":
        raise ValueError("something follows the plan")
    for key, start, end in zip(_LONG, starts, ends, strict=True):
        if not text.endswith(_END, start, end):
            raise ValueError(f"{key} is not in lines")
        rows = Rows(text, _row_ends(text, start + len(f',\n "{key}": ['), end - len(_END)))
        plan[key] = rows
    return plan


def _row_ends(text: bytes, first: int, last: int) -> array[int]:
    ends = array("Q")
    while first < last:
        ends.append(first)
        # No string holds a line break: JSON writes it as two characters.
        first = text.find(b"\n", first + 1, last)
        if first < 0:
            break
    ends.append(last)
    return ends
