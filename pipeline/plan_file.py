"""The text of `plan.json`: readable settings, then one line per shard, as there may be 30,000."""

from __future__ import annotations

import json
from typing import Any

_LONG = ("shards", "contents")


def dumps(plan: dict[str, Any]) -> str:
    """A plan as JSON. Lists of shards are written a line each, and last."""
    head = {key: value for key, value in plan.items() if key not in _LONG}
    parts = [json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}")]
    for key in _LONG:
        if key in plan:
            lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in plan[key])
            parts.append(f' "{key}": [\n  {lines}\n ]')
    return ",\n".join(parts) + "\n}\n"
