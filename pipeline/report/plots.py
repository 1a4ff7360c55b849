"""Plots as SVG text, without a plotting library, so that a plot takes only a few hundred bytes.

Marks of the first series have the class `s0`, those of the second `s1`, and so on. The style sheet
of the page colours them, for light and dark backgrounds. Screen readers read the `aria-label`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dhr_batch.pipeline.report.axes import (
    LETTER,
    WIDTH,
    Axes,
    Labels,
    document,
    dot,
    line,
    rect,
    shortened,
    text,
)
from dhr_batch.pipeline.units import number

# Up to this number of values per series, each value is a dot. More are shown as a histogram.
MAX_DOTS = 40
_MAX_BINS = 24
# The letters that fit beside a bar and above one.
_MAX_NAME, _MAX_BAR = 16, 32


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
    axes = Axes(_padded(pooled), (0.5 - len(values), 0.5), title, "", y_ticks=False)
    marks = []
    for n, (name, v) in enumerate(values.items()):
        x, y = axes.x(v.mean()), axes.y(-n)
        marks.append(line(f"mean s{n}", x, y - 15, x, y + 15))
        marks += [dot(f"s{n}", axes.x(value), y, f"{name}: {number(value)}") for value in v]
    return axes.svg(marks, label)


def _histogram(values: Mapping[str, np.ndarray], title: str, label: str) -> str:
    pooled = np.concatenate(list(values.values()))
    bins = int(np.clip(math.ceil(2 * math.sqrt(len(pooled))), 6, _MAX_BINS))
    edges = np.histogram_bin_edges(pooled, bins)
    counts = {name: np.histogram(v, edges)[0] for name, v in values.items()}
    top = max(int(c.max()) for c in counts.values())
    axes = Axes((edges[0], edges[-1]), (0, top), title, "images")
    slot = (axes.x(edges[1]) - axes.x(edges[0])) / len(counts)
    marks = [
        rect(
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
    axes = Axes(_padded(xs), _padded(ys), x_title, y_title)
    marks = [
        dot(f"cloud s{n}", axes.x(x), axes.y(y), note)
        for n, s in enumerate(clouds, _first(clouds))
        for x, y, note in _points(s)
    ]
    labels = Labels(axes, [(axes.x(x), axes.y(y)) for s in lines for x, y, _ in _points(s)])
    for n, s in enumerate(lines, _first(lines)):
        path = [(axes.x(x), axes.y(y)) for x, y, _ in _points(s)]
        if len(path) > 1:
            joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
            marks.append(f'<polyline class="s{n}" points="{joined}"/>')
        for (x, y), (_, value, note) in zip(path, _points(s), strict=True):
            marks.append(dot(f"s{n}", x, y, f"{note or s.name}: {number(value)}"))
            marks += labels.at(x, y, note) if note else []
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
    axes = Axes((edges[0], edges[-1]), (0, max(rates)), x_title, y_title)
    outline = [f"M{axes.x(edges[0]):.1f},{axes.y(0):.1f}"]
    for left, right, rate in zip(edges[:-1], edges[1:], rates, strict=True):
        outline.append(f"L{axes.x(left):.1f},{axes.y(rate):.1f}")
        outline.append(f"L{axes.x(right):.1f},{axes.y(rate):.1f}")
    outline.append(f"L{axes.x(edges[-1]):.1f},{axes.y(0):.1f}Z")
    label = f"{y_title} against {x_title}, from {number(min(rates))} to {number(max(rates))}"
    return axes.svg([f'<path class="area s1" d="{"".join(outline)}"/>'], label)


def bars(counts: Mapping[str, float], title: str) -> str | None:
    """Plot numbers as horizontal bars in the given order. Returns None if there are none."""
    if not counts:
        return None
    texts = {name: str(c) if isinstance(c, int) else number(c) for name, c in counts.items()}
    names = {name: shortened(name, _MAX_NAME) for name in counts}
    left = 8 + LETTER * max(map(len, names.values()))
    scale = (WIDTH - left - 52) / (max(counts.values()) or 1)
    pitch, marks = 22, []
    for row, (name, count) in enumerate(counts.items()):
        marks.append(text("tick", left - 8, row * pitch + 16, names[name], "end"))
        note = f"{name}: {texts[name]}"
        marks.append(rect("s1", left, row * pitch + 4, scale * count, 16, note))
        end = left + scale * count + 6
        marks.append(text("tick", end, row * pitch + 16, texts[name], "start"))
    label = f"{title}. " + ", ".join(f"{name}: {count}" for name, count in texts.items())
    return document(marks, label, pitch * len(counts) + 4)


def stacked(rows: Mapping[str, Mapping[str, float]], title: str) -> str | None:
    """Plot the parts of numbers as horizontal bars, below their names.

    Args:
        rows: The parts of each bar by name. The colour of a part is that of its place among all
            parts, in the order in which they appear.
        title: What is shown, for screen readers.

    Returns:
        SVG text, or None if there is nothing to draw.
    """
    sums = {name: sum(parts.values()) for name, parts in rows.items()}
    top = max(sums.values(), default=0)
    if not top > 0:
        return None
    colours = list(dict.fromkeys(part for parts in rows.values() for part in parts))
    pitch, scale, marks = 38, (WIDTH - 52) / top, []
    for row, (name, parts) in enumerate(rows.items()):
        x, y = 0.0, row * pitch
        marks.append(text("tick", 0, y + 12, shortened(name, _MAX_BAR), "start"))
        for part, value in parts.items():
            note = f"{name}, {part}: {number(value)}"
            marks.append(rect(f"s{colours.index(part)}", x, y + 17, scale * value, 14, note))
            x += scale * value
        marks.append(text("tick", x + 6, y + 28, number(sums[name]), "start"))
    spoken = (
        f"{name}: {number(sums[name])}, of which "
        + ", ".join(f"{part} {number(value)}" for part, value in parts.items())
        for name, parts in rows.items()
    )
    return document(marks, f"{title}. {'; '.join(spoken)}", pitch * len(rows))


def _padded(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _points(series: Series) -> list[tuple[float, float, str]]:
    notes = series.notes or [""] * len(series.x)
    found = zip(series.x, series.y, notes, strict=True)
    return [point for point in found if math.isfinite(point[0]) and math.isfinite(point[1])]
