"""Named points in the code at which the recovery tests kill a process.

Nothing happens unless these environment variables are set:

- `DHR_BATCH_CRASH_AT`: `mid-publish` sends SIGKILL when the process first reaches that point,
  `mid-publish:3` when it reaches it for the third time. `any` matches all points.
- `DHR_BATCH_CRASH_COUNT`: a file that counts over all processes together, not per process.
- `DHR_BATCH_CRASH_PID`: the process to signal instead of the current one, for example the driver
  when a worker reaches the point.
- `DHR_BATCH_CRASH_SIGNAL`: the signal to send. `SIGSTOP` suspends the process at the point, so
  that a test can kill it together with its node.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

_reached: Counter[str] = Counter()
_lock = threading.Lock()


def at(point: str) -> None:
    """Kill the process if the environment asks for it at this point."""
    setting = os.environ.get("DHR_BATCH_CRASH_AT")
    if not setting:
        return
    name, _, number = setting.partition(":")
    if name in (point, "any") and _count(name) == int(number or 1):
        chosen = signal.Signals[os.environ.get("DHR_BATCH_CRASH_SIGNAL", "SIGKILL")]
        if other := os.environ.get("DHR_BATCH_CRASH_PID"):
            os.kill(int(other), chosen)
        else:
            # A signal to the whole process could let this thread continue for a moment.
            signal.pthread_kill(threading.get_ident(), chosen)


def _count(point: str) -> int:
    """Return how often the point has been reached, this time included."""
    path = os.environ.get("DHR_BATCH_CRASH_COUNT")
    if path is None:
        with _lock:
            _reached[point] += 1
            return _reached[point]
    # Appends are atomic, and the file position after an append is the number of appends so far.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(handle, b".")
        return os.lseek(handle, 0, os.SEEK_CUR)
    finally:
        os.close(handle)
