"""Format durations, sizes and other numbers for people."""

from __future__ import annotations

import math

from dhr_batch.stages.edit import syntax


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


def counted(number: int, what: str) -> str:
    """Format a number of things whose plural ends in `s`.

    >>> counted(1, "image"), counted(0, "shard")
    ('1 image', '0 shards')
    """
    return f"{number} {what}{'s' if number != 1 else ''}"


def number(value: float | None) -> str:
    """Format a number for readers; `–` for None and nan.

    >>> number(24.104), number(0.51234), number(0.00012), number(None)
    ('24.10', '0.512', '1.20e-04', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def signed(strength: float) -> str:
    """Format the strength of an edit with its sign."""
    return f"{strength:+g}" if strength else "0"


def edit_title(name: str, strength: float) -> str:
    """Return the name of an edit with its strength, unless this is in the name already.

    >>> edit_title("smile", 2), edit_title("smile=1+age=10", 1)
    ('smile +2', 'smile=1+age=10')
    """
    return name if syntax.names_all(name, strength) else f"{name} {signed(strength)}"
