"""Axes and shapes of plots as SVG text, and places for labels that cover nothing.

The browser chooses the font, so the widths of texts are estimated. Estimates are those of wide
fonts such as DejaVu Sans.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from itertools import pairwise

from dhr_batch.pipeline.printable import printable

WIDTH, HEIGHT = 250, 168
_LEFT, _RIGHT, _BOTTOM = 50, 10, 39
# The title of the y axis is above the axis, because along the axis it would be too long.
_TOP = {False: 12, True: 28}
# The width of a letter, and of a bold digit or sign.
LETTER, _BOLD = 7.7, 9.0
# Longer titles are cut. The headline of the plot has the whole title.
_MAX_TITLE = 36


class Axes:
    """The axes of a plot: scales, grid, ticks and titles."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        x_title: str,
        y_title: str,
        y_ticks: bool = True,
    ) -> None:
        self._x, self._y, self._y_ticks = _widened(x), _widened(y), y_ticks
        self.left = _LEFT if y_ticks else _RIGHT
        self.top = _TOP[bool(y_title)]
        self._titles = (shortened(x_title, _MAX_TITLE), shortened(y_title, _MAX_TITLE))

    def x(self, value: float) -> float:
        """Return the position of a value on the x axis."""
        low, high = self._x
        return self.left + (value - low) / (high - low) * (WIDTH - self.left - _RIGHT)

    def y(self, value: float) -> float:
        """Return the position of a value on the y axis."""
        low, high = self._y
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - self.top - _BOTTOM)

    def svg(self, marks: Sequence[str], label: str) -> str:
        """Return the plot with its axes below the marks. label: the text for screen readers."""
        base, x_title, y_title = HEIGHT - _BOTTOM, *self._titles
        frame = [line("axis", self.left, base, WIDTH - _RIGHT, base)]
        for value, name in self._x_ticks():
            frame.append(line("axis", self.x(value), base, self.x(value), base + 4))
            frame.append(text("tick", self.x(value), base + 18, name, "middle"))
        shown = ticks(*self._y) if self._y_ticks else []
        for value, name in zip(shown, _tick_texts(shown), strict=True):
            y = self.y(value)
            frame.append(line("grid", self.left, y, WIDTH - _RIGHT, y))
            frame.append(text("tick", self.left - 6, y + 4, name, "end"))
        frame.append(text("axis-title", WIDTH - _RIGHT, HEIGHT - 3, x_title, "end"))
        if y_title:
            frame.append(text("axis-title", 0, 11, y_title, "start"))
        return document([*frame, *marks], label, HEIGHT)

    def _x_ticks(self) -> list[tuple[float, str]]:
        """Return as many ticks as fit beside one another, with their texts."""
        for most in (5, 4, 3, 2):
            values = ticks(*self._x, most)
            names = _tick_texts(values)
            wide = LETTER * max(map(len, names), default=0) + 4
            if all(self.x(b) - self.x(a) >= wide for a, b in pairwise(values)):
                break
        return list(zip(values, names, strict=True))


# Where a label may stand, from its point.
_PLACES = ((0, -8, "middle"), (0, 18, "middle"), (8, 4, "start"), (-8, 4, "end"))


class Labels:
    """Places of labels at points, so that labels cover neither each other nor points."""

    def __init__(self, axes: Axes, points: Sequence[tuple[float, float]]) -> None:
        self._taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
        self._limits = (axes.left, axes.top - 12, WIDTH, HEIGHT - _BOTTOM)

    def at(self, x: float, y: float, name: str) -> list[str]:
        """Return a label above, below or beside a point; none if there is no room for it."""
        wide = _BOLD * len(name)
        for dx, dy, anchor in _PLACES:
            left = x + dx - {"middle": wide / 2, "start": 0, "end": wide}[anchor]
            box = (left, y + dy - 10, left + wide, y + dy + 2)
            inside = box[0] >= self._limits[0] and box[1] >= self._limits[1]
            inside = inside and box[2] <= self._limits[2] and box[3] <= self._limits[3]
            if inside and not any(_overlap(box, other) for other in self._taken):
                self._taken.append(box)
                return [text("note", x + dx, y + dy, name, anchor)]
        return []


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    beside = one[2] <= other[0] or other[2] <= one[0]
    return not (beside or one[3] <= other[1] or other[3] <= one[1])


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` ticks in [low, high], spaced by 1, 2 or 5 times a power of ten.

    >>> ticks(0, 10)
    [0.0, 5.0, 10.0]
    """
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while (high - low) / step + 1e-9 >= most:
        # From 2 to 5 the factor is 2.5; from 1 to 2 and from 5 to 10 it is 2.
        first = round(step / 10.0 ** math.floor(math.log10(step) + 1e-9))
        step *= 2.5 if first == 2 else 2
    return [
        k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _widened(ends: tuple[float, float]) -> tuple[float, float]:
    """Widen an empty range, so that it has a length."""
    low, high = float(ends[0]), float(ends[1])
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _tick_texts(values: Sequence[float]) -> list[str]:
    """Format ticks with the smallest equal number of decimals that represents all of them."""
    for decimals in range(7):
        texts = [f"{value:.{decimals}f}" for value in values]
        if all(
            abs(float(t) - v) < 1e-9 + 1e-6 * abs(v) for t, v in zip(texts, values, strict=True)
        ):
            return texts
    return [f"{value:.2g}" for value in values]


def shortened(name: str, most: int) -> str:
    """Cut a text that has more than `most` letters.

    >>> shortened("directions", 8)
    'directi…'
    """
    return name if len(name) <= most else name[: most - 1] + "…"


def document(parts: Sequence[str], label: str, height: float) -> str:
    """Return an SVG element. label: the text for screen readers."""
    attributes = f'class="plot" viewBox="0 0 {WIDTH} {height}" role="img"'
    return f'<svg {attributes} aria-label="{_text(label)}">{"".join(parts)}</svg>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a line of a class."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(kind: str, x: float, y: float, words: str, anchor: str) -> str:
    """Return a text of a class."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{_text(words)}</text>'


def dot(kind: str, x: float, y: float, note: str) -> str:
    """Return a dot of a class. note: its tooltip."""
    title = f"<title>{_text(note)}</title>" if note else ""
    radius = 2.2 if kind.startswith("cloud") else 4
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{title}</circle>'


def rect(kind: str, x: float, y: float, width: float, height: float, note: str) -> str:
    """Return a rectangle of a class. note: its tooltip."""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {place}><title>{_text(note)}</title></rect>'


def _text(words: str) -> str:
    """Escape what names of images and edits may hold."""
    return html.escape(printable(words))
