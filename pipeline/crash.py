"""Points where the tests of recovery end a process; without the variables below nothing happens.

`DHR_BATCH_CRASH_AT=mid-publish` ends the process with SIGKILL when it first passes that point,
`mid-publish:3` at the third passing. `DHR_BATCH_CRASH_COUNT` names a file that counts the passings
of all processes together, so that a replaced worker does not crash again. `DHR_BATCH_CRASH_PID` is
whom to end instead: the driver, when a worker passes the point.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

_passed: Counter[str] = Counter()
_lock = threading.Lock()


def at(point: str) -> None:
    """Pass a point."""
    wanted = os.environ.get("DHR_BATCH_CRASH_AT")
    if not wanted:
        return
    name, _, number = wanted.partition(":")
    if point == name and _count(point) == int(number or 1):
        os.kill(int(os.environ.get("DHR_BATCH_CRASH_PID", os.getpid())), signal.SIGKILL)


def _count(point: str) -> int:
    path = os.environ.get("DHR_BATCH_CRASH_COUNT")
    if path is None:
        with _lock:
            _passed[point] += 1
            return _passed[point]
    # Appends are atomic, and the position after one tells how many bytes were there.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(handle, b".")
        return os.lseek(handle, 0, os.SEEK_CUR)
    finally:
        os.close(handle)
