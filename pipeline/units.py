"""Format durations and sizes for people."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """Format a duration.

    >>> duration(4.21), duration(42), duration(200), duration(18_420), duration(None)
    ('4.2 s', '42 s', '3 min 20 s', '5 h 07 min', '?')
    """
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Format a number of bytes, with decimal prefixes.

    >>> size(512), size(3_210_000)
    ('512 B', '3.2 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
