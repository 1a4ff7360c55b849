"""The file in which a driver says what it does, as others read it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage.base import Storage

STATUS = "_state/status.json"

log = logging.getLogger(__name__)


class Damaged(StorageError):
    """The file cannot be read; nothing depends on it."""


def read_status(run: Storage) -> dict[str, Any]:
    """What the last driver wrote, {} where none did. Raises Damaged."""
    content = run.read(STATUS)
    if content is None:
        return {}
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise Damaged(
            run.locate(STATUS),
            f"it is damaged ({error})",
            "delete it; only the speed of earlier starts is lost",
        ) from error
    return found


def writer(run: Storage) -> Callable[[bytes], None]:
    """What writes the file; nothing where another file that no driver wrote has its name."""
    try:
        read_status(run)
    except Damaged as error:
        if run.read(STATUS):
            log.warning("%s; until then no status is written", error)
            return lambda content: None
    return lambda content: run.replace(STATUS, content)


def throughput(run: Storage) -> list[list[float]]:
    """Points [Unix time, images finished] of all starts so far; none where the file is damaged."""
    try:
        return read_status(run).get("throughput", [])
    except Damaged as error:
        log.warning("%s", error)
        return []
