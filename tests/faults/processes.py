"""Functions that find, signal and wait for processes and their children."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path


def _table() -> dict[int, tuple[str, int]]:
    """Return state (one letter, see `man proc`) and parent of each process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of a program may hold blanks and parentheses.
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            found[int(path.parent.name)] = (state, int(parent))
    return found


def family(pid: int) -> list[int]:
    """Return a process and all its descendants, parents first."""
    children = defaultdict(list)
    for child, (_, parent) in _table().items():
        children[parent].append(child)
    found = [pid]
    for member in found:
        found += children[member]
    return found


def standing(pids: Iterable[int]) -> list[int]:
    """Return those of the processes that SIGSTOP has stopped."""
    table = _table()
    return [pid for pid in pids if table.get(pid, ("", 0))[0] == "T"]


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal all that exist. Parents come first, so that none of them can report a lost child."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def until(ready: Callable[[], bool], what: str, seconds: float = 180.0) -> None:
    """Wait for a condition. Raises TimeoutError, because a test that hangs shows nothing."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)
