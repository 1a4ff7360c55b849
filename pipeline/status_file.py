"""The file in which a driver says what it does, as others read it."""

from __future__ import annotations

import json
from typing import Any

from dhr_batch.pipeline.storage import Storage, StorageError

STATUS = "_state/status.json"


def read(run: Storage) -> dict[str, Any]:
    """What the last driver wrote, {} where none did. Raises StorageError where it is damaged."""
    content = run.read(STATUS)
    if content is None:
        return {}
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise StorageError(
            f"{run.locate(STATUS)} is damaged ({error}): delete it; only the speed of earlier "
            "starts is lost"
        ) from error
    return found
