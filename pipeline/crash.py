"""Points where the tests of recovery end a process; without the variables below nothing happens.

`DHR_BATCH_CRASH_AT=mid-publish` ends the process with SIGKILL when it first passes that point,
`mid-publish:3` at the third passing; `any` stands for all points. `DHR_BATCH_CRASH_COUNT` names a
file that counts the passings of all processes together. `DHR_BATCH_CRASH_PID` is whom to end
instead: the driver, when a worker passes the point. `DHR_BATCH_CRASH_SIGNAL=SIGSTOP` lets the
process stand at the point, for somebody who ends it together with its machine.
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
    if name in (point, "any") and _count(name) == int(number or 1):
        sent = signal.Signals[os.environ.get("DHR_BATCH_CRASH_SIGNAL", "SIGKILL")]
        if other := os.environ.get("DHR_BATCH_CRASH_PID"):
            os.kill(int(other), sent)
        else:
            # Sent to the process, it might let this thread go on for a moment.
            signal.pthread_kill(threading.get_ident(), sent)


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
