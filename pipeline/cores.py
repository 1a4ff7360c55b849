"""The CPU cores that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CONTROL = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def cores() -> int:
    """Return the number of CPU cores that this process may use, at least 1.

    A container often sees all cores of its machine, but gets the time of fewer. More threads than
    that would wait for each other.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([usable or 1, *_limits()]))


def _limits() -> Iterator[int]:
    """Yield the limits of the control groups (Linux) of this process, versions 2 and 1."""
    with suppress(OSError, ValueError):
        found = [line.split(":", 2)[2] for line in _OWN.read_text().splitlines() if line[:1] == "0"]
        own = _CONTROL / "".join(found[:1]).strip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(_CONTROL):
                yield from _limit(folder / "cpu.max")
    yield from _limit(_CONTROL / "cpu/cpu.cfs_quota_us", _CONTROL / "cpu/cpu.cfs_period_us")


def _limit(*files: Path) -> Iterator[int]:
    # The quota is "max" or -1 if there is none.
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (int(word) for file in files for word in file.read_text().split())
        if quota > 0:
            yield math.ceil(quota / period)
