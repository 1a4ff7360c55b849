"""The text of `plan.json`: readable settings, then one line per shard, as there may be 30,000."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_LONG = ("shards", "contents")


def dumps(plan: dict[str, Any]) -> str:
    """A plan as JSON. Lists of shards are written a line each, and last."""
    head = {key: value for key, value in plan.items() if key not in _LONG}
    text = json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}")
    return "".join((text, *_lines(plan), "\n}\n"))


def _lines(plan: dict[str, Any]) -> Iterator[str]:
    for key in _LONG:
        if key in plan:
            yield f',\n "{key}": ['
            for number, row in enumerate(plan[key]):
                yield (",\n  " if number else "\n  ") + json.dumps(row, ensure_ascii=False)
            yield "\n ]"
