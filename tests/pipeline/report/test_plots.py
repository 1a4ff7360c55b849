"""Plots as SVG: marks lie where their values say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from dhr_batch.pipeline.report import axes, plots
from dhr_batch.pipeline.report.plots import Series


def marks(svg: str, tag: str, kind: str) -> list[ET.Element]:
    """Elements of a well-formed plot by tag and class."""
    root = ET.fromstring(svg)
    return [e for e in root.iter(tag) if e.get("class") == kind]


def numbers(elements: list[ET.Element], attribute: str) -> list[float]:
    return [float(e.get(attribute, "nan")) for e in elements]


def test_a_few_values_are_dots_on_one_scale() -> None:
    svg = plots.distribution({"inverted": [0.0, 1.0], "refined": [4.0]}, "PSNR") or ""
    first, second = marks(svg, "circle", "s0"), marks(svg, "circle", "s1")
    (zero, one), (four,) = numbers(first, "cx"), numbers(second, "cx")
    assert four - zero == pytest.approx(4 * (one - zero), abs=0.3)
    assert len({e.get("cy") for e in first}) == 1
    assert numbers(second, "cy")[0] > numbers(first, "cy")[0]
    (mean,) = marks(svg, "line", "mean s0")
    assert float(mean.get("x1", "")) == pytest.approx((zero + one) / 2, abs=0.1)


def test_many_values_are_counted() -> None:
    values = np.repeat([1.0, 2.0, 8.0], [100, 50, 25])
    svg = plots.distribution({"refined": values}, "PSNR") or ""
    assert not marks(svg, "circle", "s0")
    heights = numbers(marks(svg, "rect", "s0"), "height")
    np.testing.assert_allclose(np.array(heights) / max(heights), [1, 0.5, 0.25], atol=0.01)


def test_values_that_are_not_finite_are_said() -> None:
    svg = plots.distribution({"refined": [1.0, np.inf, np.nan]}, "PSNR") or ""
    assert len(marks(svg, "circle", "s0")) == 1
    assert "2 not finite, not drawn" in svg
    assert plots.distribution({"refined": [np.nan]}, "PSNR") is None
    assert plots.distribution({}, "PSNR") is None


def test_a_curve_passes_its_points_above_a_cloud() -> None:
    line = Series("mean", [0.0, 1.0, 2.0], [5.0, 7.0, 5.0], ["a", "b", "c"])
    cloud = Series("images", [0.0, 2.0, np.nan], [9.0, 1.0, 1.0])
    svg = plots.curves([line], "x", "y", [cloud]) or ""
    assert len(marks(svg, "circle", "cloud s1")) == 2
    dots = marks(svg, "circle", "s1")
    (path,) = marks(svg, "polyline", "s1")
    joined = [tuple(map(float, pair.split(","))) for pair in path.get("points", "").split()]
    assert joined == list(zip(numbers(dots, "cx"), numbers(dots, "cy"), strict=True))
    (left, low), (middle, high), (right, end) = joined
    assert (right - middle, low) == (pytest.approx(middle - left, abs=0.11), end)
    assert high < low
    assert plots.curves([Series("mean", [], [])], "x", "y") is None


def test_one_value_and_equal_values_have_a_place() -> None:
    for values in ([3.0], [3.0] * 50, [0.0]):
        svg = plots.distribution({"refined": values}, "PSNR") or ""
        assert "nan" not in svg
        assert "inf" not in svg
    assert "nan" not in (plots.curves([Series("mean", [1.0], [2.0])], "x", "y") or "nan")


def test_steps_enclose_what_was_finished() -> None:
    svg = plots.steps([0, 10, 20], [1.0, 3.0], "time [s]", "images/s")
    (area,) = marks(svg, "path", "area s1")
    y = [float(v) for v in re.findall(r",([\d.]+)", area.get("d", ""))]
    assert y[0] == y[-1] == max(y)
    assert (y[0] - y[3]) == pytest.approx(3 * (y[0] - y[1]), abs=0.3)


def test_names_cannot_break_the_svg() -> None:
    name = "<b>&\"'"
    for svg in (
        plots.bars({name: 2}, name),
        plots.distribution({name: [1.0]}, name),
        plots.curves([Series(name, [1.0], [1.0], [name])], name, name),
    ):
        texts = [e.text for e in ET.fromstring(svg or "").iter() if e.text]
        assert any(name in text for text in texts)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 5, 10]),
        (0, 1, [0, 0.5, 1]),
        (18.2, 33.4, [20, 25, 30]),
        (-0.4, 0.1, [-0.4, -0.2, 0]),
        (0, 2.4e-6, [0, 5e-7, 1e-6, 1.5e-6, 2e-6]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    np.testing.assert_allclose(axes.ticks(low, high), expected, atol=1e-12)
