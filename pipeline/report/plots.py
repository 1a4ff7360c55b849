"""Plots as SVG text, without a plotting library, so that a plot takes only a few hundred bytes.

Marks of the first series have the class `s0`, those of the second `s1`, and so on. The style sheet
of the page colours them, for light and dark backgrounds. Screen readers read the `aria-label`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dhr_batch.pipeline.units import number

WIDTH, HEIGHT = 250, 165
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 12, 36
# Up to this number of values per series, each value is a dot. More are shown as a histogram.
MAX_DOTS = 40
_MAX_BINS = 24


@dataclass(frozen=True)
class Series:
    """Points of a curve or cloud.

    Attributes:
        name: Name of the series.
        x: [N].
        y: [N].
        notes: [N], the tooltip of each point; empty for none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    notes: Sequence[str] = ()


def distribution(series: Mapping[str, Sequence[float]], title: str) -> str | None:
    """Plot the distribution of one or more series of values.

    Infinite values and nan are left out. Their number is part of the `aria-label`.

    Args:
        series: Values by the name of the series.
        title: The title of the axis.

    Returns:
        SVG text, or None if there is no finite value.
    """
    values = {name: np.asarray(v, np.float64) for name, v in series.items()}
    infinite = sum(int((~np.isfinite(v)).sum()) for v in values.values())
    values = {name: v[np.isfinite(v)] for name, v in values.items()}
    values = {name: v for name, v in values.items() if len(v)}
    if not values:
        return None
    spoken = "; ".join(
        f"{name}: {len(v)} values from {number(v.min())} to {number(v.max())}, "
        f"mean {number(v.mean())}, median {number(float(np.median(v)))}"
        for name, v in values.items()
    )
    left_out = f"; {infinite} not finite, not drawn" if infinite else ""
    label = f"Distribution of {title}. {spoken}{left_out}"
    few = max(map(len, values.values())) <= MAX_DOTS
    return _dots(values, title, label) if few else _histogram(values, title, label)


def _dots(values: Mapping[str, np.ndarray], title: str, label: str) -> str:
    pooled = np.concatenate(list(values.values()))
    axes = _Axes(_padded(pooled), (0.5 - len(values), 0.5), title, "", y_ticks=False)
    marks = []
    for n, (name, v) in enumerate(values.items()):
        x, y = axes.x(v.mean()), axes.y(-n)
        marks.append(_line(f"mean s{n}", x, y - 15, x, y + 15))
        marks += [_dot(f"s{n}", axes.x(value), y, f"{name}: {number(value)}") for value in v]
    return axes.svg(marks, label)


def _histogram(values: Mapping[str, np.ndarray], title: str, label: str) -> str:
    pooled = np.concatenate(list(values.values()))
    bins = int(np.clip(math.ceil(2 * math.sqrt(len(pooled))), 6, _MAX_BINS))
    edges = np.histogram_bin_edges(pooled, bins)
    counts = {name: np.histogram(v, edges)[0] for name, v in values.items()}
    top = max(int(c.max()) for c in counts.values())
    axes = _Axes((edges[0], edges[-1]), (0, top), title, "images")
    slot = (axes.x(edges[1]) - axes.x(edges[0])) / len(counts)
    marks = [
        _rect(
            f"s{n}",
            axes.x(edges[i]) + n * slot + 0.3,
            axes.y(count),
            slot - 0.6,
            axes.y(0) - axes.y(count),
            f"{name}: {count} from {number(edges[i])} to {number(edges[i + 1])}",
        )
        for n, (name, column) in enumerate(counts.items())
        for i, count in enumerate(column)
        if count
    ]
    return axes.svg(marks, label)


def curves(
    lines: Sequence[Series], x_title: str, y_title: str, clouds: Sequence[Series] = ()
) -> str | None:
    """Plot lines over faint clouds of points.

    Args:
        lines: Their points are joined in order, and labelled with their notes.
        x_title: The title of the x axis.
        y_title: The title of the y axis.
        clouds: Points without lines.

    Returns:
        SVG text, or None if there is no finite point.
    """
    finite = [point for s in (*lines, *clouds) for point in zip(s.x, s.y, strict=True)]
    finite = [point for point in finite if np.isfinite(point).all()]
    if not finite:
        return None
    xs, ys = np.array(finite).T
    axes = _Axes(_padded(xs), _padded(ys), x_title, y_title)
    marks = [
        _dot(f"cloud s{n}", axes.x(x), axes.y(y), note)
        for n, s in enumerate(clouds, _first(clouds))
        for x, y, note in _points(s)
    ]
    for n, s in enumerate(lines, _first(lines)):
        path = [(axes.x(x), axes.y(y)) for x, y, _ in _points(s)]
        if len(path) > 1:
            joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
            marks.append(f'<polyline class="s{n}" points="{joined}"/>')
        for (x, y), (_, value, note) in zip(path, _points(s), strict=True):
            marks.append(_dot(f"s{n}", x, y, f"{note or s.name}: {number(value)}"))
            if note:
                marks.append(_text("note", x, y - 8, note, "middle"))
    spoken = "; ".join(
        f"{s.name}: " + ", ".join(f"{n} {number(x)}, {number(y)}".strip() for x, y, n in _points(s))
        for s in lines
    )
    return axes.svg(marks, f"{y_title} against {x_title}. {spoken}")


def _first(series: Sequence[Series]) -> int:
    """Return the number of the first colour: a single series skips the grey of a reference."""
    return 1 if len(series) == 1 else 0


def steps(edges: Sequence[float], rates: Sequence[float], x_title: str, y_title: str) -> str:
    """Plot a rate over time as a filled step function.

    Args:
        edges: [N + 1], increasing.
        rates: [N], the rate between two edges.
        x_title: The title of the x axis.
        y_title: The title of the y axis.
    """
    axes = _Axes((edges[0], edges[-1]), (0, max(rates)), x_title, y_title)
    outline = [f"M{axes.x(edges[0]):.1f},{axes.y(0):.1f}"]
    for left, right, rate in zip(edges[:-1], edges[1:], rates, strict=True):
        outline.append(f"L{axes.x(left):.1f},{axes.y(rate):.1f}")
        outline.append(f"L{axes.x(right):.1f},{axes.y(rate):.1f}")
    outline.append(f"L{axes.x(edges[-1]):.1f},{axes.y(0):.1f}Z")
    label = f"{y_title} against {x_title}, from {number(min(rates))} to {number(max(rates))}"
    return axes.svg([f'<path class="area s1" d="{"".join(outline)}"/>'], label)


def bars(counts: Mapping[str, int], title: str) -> str | None:
    """Plot counts as horizontal bars in the given order. Returns None if there are none."""
    if not counts:
        return None
    pitch, left, top = 22, 84, max(counts.values())
    marks = []
    for row, (name, count) in enumerate(counts.items()):
        width = (WIDTH - left - 40) * count / top
        marks.append(_text("tick", left - 8, row * pitch + 16, name, "end"))
        marks.append(_rect("s1", left, row * pitch + 4, width, 16, f"{name}: {count}"))
        marks.append(_text("tick", left + width + 6, row * pitch + 16, str(count), "start"))
    label = f"{title}. " + ", ".join(f"{name}: {count}" for name, count in counts.items())
    return _svg(marks, label, pitch * len(counts) + 4)


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


class _Axes:
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
        self._left = _LEFT if y_ticks else _RIGHT
        self._titles = (x_title, y_title)

    def x(self, value: float) -> float:
        """Return the position of a value on the x axis."""
        low, high = self._x
        return self._left + (value - low) / (high - low) * (WIDTH - self._left - _RIGHT)

    def y(self, value: float) -> float:
        """Return the position of a value on the y axis."""
        low, high = self._y
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    def svg(self, marks: Sequence[str], label: str) -> str:
        """Return the plot with its axes below the marks. label: the text for screen readers."""
        base, x_title, y_title = HEIGHT - _BOTTOM, *self._titles
        frame = [_line("axis", self._left, base, WIDTH - _RIGHT, base)]
        shown = ticks(*self._x)
        for value, text in zip(shown, _tick_texts(shown), strict=True):
            frame.append(_line("axis", self.x(value), base, self.x(value), base + 4))
            frame.append(_text("tick", self.x(value), base + 16, text, "middle"))
        shown = ticks(*self._y) if self._y_ticks else []
        for value, text in zip(shown, _tick_texts(shown), strict=True):
            y = self.y(value)
            frame.append(_line("grid", self._left, y, WIDTH - _RIGHT, y))
            frame.append(_text("tick", self._left - 6, y + 4, text, "end"))
        frame.append(_text("axis-title", WIDTH - _RIGHT, HEIGHT - 4, x_title, "end"))
        if y_title:
            turn = f'transform="rotate(-90 11 {_TOP})"'
            frame.append(_text("axis-title", 11, _TOP, y_title, "end", turn))
        return _svg([*frame, *marks], label, HEIGHT)


def _widened(ends: tuple[float, float]) -> tuple[float, float]:
    """Widen an empty range, so that it has a length."""
    low, high = float(ends[0]), float(ends[1])
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _padded(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _points(series: Series) -> list[tuple[float, float, str]]:
    notes = series.notes or [""] * len(series.x)
    found = zip(series.x, series.y, notes, strict=True)
    return [point for point in found if math.isfinite(point[0]) and math.isfinite(point[1])]


def _tick_texts(values: Sequence[float]) -> list[str]:
    """Format ticks with the smallest equal number of decimals that represents all of them."""
    for decimals in range(7):
        texts = [f"{value:.{decimals}f}" for value in values]
        if all(
            abs(float(t) - v) < 1e-9 + 1e-6 * abs(v) for t, v in zip(texts, values, strict=True)
        ):
            return texts
    return [f"{value:.2g}" for value in values]


def _escape(text: str) -> str:
    return html.escape(text)


def _svg(parts: Sequence[str], label: str, height: float) -> str:
    attributes = f'class="plot" viewBox="0 0 {WIDTH} {height}" role="img"'
    return f'<svg {attributes} aria-label="{_escape(label)}">{"".join(parts)}</svg>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}'
    return f'<text class="{kind}" {place}>{_escape(text)}</text>'


def _dot(kind: str, x: float, y: float, note: str) -> str:
    title = f"<title>{_escape(note)}</title>" if note else ""
    radius = 2.2 if kind.startswith("cloud") else 4
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{title}</circle>'


def _rect(kind: str, x: float, y: float, width: float, height: float, note: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {place}><title>{_escape(note)}</title></rect>'
