"""Curves and strengths of edits, from values and from tables of metrics."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from dhr_batch.pipeline.stats.curves import Curve, at, crossing, curves_of, strengths_of
from dhr_batch.pipeline.stats.equal_effect import equal_effect
from dhr_batch.pipeline.stats.strengths import by_strength, costs_of

IDENTITY = "identity_dlib_distance"


@pytest.mark.parametrize(
    ("values", "target", "first", "last"),
    [
        ((0, 1, 3), 2, 1.5, 1.5),
        ((0, 1, 3), 0.25, 0.25, 0.25),
        ((0, 1, 3), 3, 2, 2),
        ((0, 1, 3), 3.01, math.nan, math.nan),
        ((1, 2), 0.5, 0, 0),
        # The maximum stays at 2 while the values fall back.
        ((0, 2, 1, 2.0, 4), 2, 1, 3),
        ((0, 2, 1, 4), 3, 2.5, 2.5),
    ],
)
def test_where_a_rising_curve_crosses(values, target, first, last):
    assert crossing(values, target) == pytest.approx(first, nan_ok=True)
    assert crossing(values, target, last=True) == pytest.approx(last, nan_ok=True)


def test_an_edit_that_turns_back_stands_still():
    s = np.array([0.0, 1, 2, 3])
    curve = Curve(s, np.array([0, 0.2, 0.1, 0.4]), {IDENTITY: s})
    assert curve.place(0.2) == 1
    assert curve.place(0.3) == pytest.approx(2.5)
    assert curve.reach(1) == pytest.approx(0.4)
    assert curve.reach(-1) == 0


def table(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image_id", "stage", "metric", "value"])


def test_curves_and_strengths_are_read_from_the_metrics():
    rows = []
    for image, start in (("x", 0.5), ("y", 0.7)):
        stages = {"source": start, "refined": start + 0.01, "edit:smile:-1.5": start - 0.2}
        stages["edit:smile:2"] = start + 0.3
        rows += [(image, stage, "score_smile", value) for stage, value in stages.items()]
        rows += [(image, stage, IDENTITY, n / 10) for n, stage in enumerate(stages) if n]
    rows += [("x", "edit:age:1", IDENTITY, 0.5), ("z", "refined", "score_smile", 0.5)]
    metrics = table(*rows)
    assert strengths_of(metrics) == {"smile": [-1.5, 2.0], "age": [1.0]}
    found = curves_of(metrics, "smile", [IDENTITY])
    assert found.keys() == {"x", "y"}
    np.testing.assert_array_equal(found["x"].strengths, [-1.5, 0, 2])
    np.testing.assert_allclose(found["y"].effects, [-0.2, 0.01, 0.3])
    np.testing.assert_allclose(found["x"].costs[IDENTITY], [0.2, 0.1, 0.3])
    assert curves_of(metrics, "age", [IDENTITY]) == {}

    smile = [s for s in by_strength(metrics, [IDENTITY]) if s.edit == "smile"]
    assert [s.strength for s in smile] == [-1.5, 0, 2]
    assert [s.effect.value for s in smile] == pytest.approx([-0.2, 0.01, 0.3])
    assert [s.costs[IDENTITY].value for s in smile] == pytest.approx([0.2, 0.1, 0.3])
    (nothing, aged) = [s for s in by_strength(metrics, [IDENTITY]) if s.edit == "age"]
    assert (nothing.strength, aged.effect.n, aged.costs[IDENTITY].n) == (0, 0, 1)


def test_the_refined_picture_lies_between_targets():
    """Targets -2, 0 and 3 of a score that they set to themselves; the face is at 1 before."""
    rows = [("i", "source", "score_x", 1.0), ("i", "refined", "score_x", 1.0)]
    rows += [("i", f"edit:x:{s}", "score_x", float(s)) for s in (-2, 0, 3)]
    rows += [("i", f"edit:x:{s}", IDENTITY, abs(s - 1.0)) for s in (-2, 0, 3)]
    rows += [("i", "refined", IDENTITY, 0.0), ("i", "refined", "start_x", 1.0)]
    metrics = table(*rows)
    found = curves_of(metrics, "x", [IDENTITY])["i"]
    np.testing.assert_array_equal(found.strengths, [-2, 0, 1, 3])
    np.testing.assert_array_equal(found.effects, [-3, -1, 0, 2])
    assert (found.reach(1), found.reach(-1)) == (2, 3)
    assert at_effect(found, -2) == pytest.approx(-1)
    assert at_effect(found, 1) == pytest.approx(2)
    same = equal_effect({"a": {"i": found}, "b": {"i": found}})
    assert same.strength("a").value == pytest.approx(2.5)
    assert same.costs(IDENTITY)["a"]["i"] == pytest.approx(2.5)
    listed = by_strength(metrics, [IDENTITY])
    assert [(row.strength, row.effect.value) for row in listed] == [
        (-2, -3),
        (0, -1),
        (1, 0),
        (3, 2),
    ]


def test_a_target_at_which_the_face_lies_is_listed_beside_the_refined_picture():
    rows = [("i", s, "score_x", v) for s, v in (("source", 0.0), ("refined", 0.1))]
    rows += [("i", "edit:x:0", "score_x", 0.2), ("i", "refined", "start_x", 0.0)]
    listed = by_strength(table(*rows), [])
    assert [(row.strength, row.effect.value) for row in listed] == [(0, 0.2), (0, 0.1)]


def at_effect(curve: Curve, effect: float) -> float:
    return at(curve.strengths, curve.place(effect))


@pytest.mark.parametrize(
    ("scores", "effect"),
    [(["yaw", "yaw_degrees"], 20.0), (["yaw"], 0.25), (["yaw_degrees"], 20.0), (["smile"], None)],
)
def test_yaw_is_judged_in_degrees_where_these_were_measured(scores, effect):
    values = {"yaw": 0.25, "yaw_degrees": 20.0, "smile": 3.0}
    stages = ("source", "refined", "edit:yaw:1")
    metrics = table(
        *(
            ("x", stage, f"score_{s}", values[s] * (n == 2))
            for s in scores
            for n, stage in enumerate(stages)
        )
    )
    found = curves_of(metrics, "yaw", [])
    (_, edited) = by_strength(metrics, [])
    if effect is None:
        assert found == {}
        assert edited.effect.n == 0
    else:
        assert found["x"].effects[-1] == effect
        assert edited.effect.value == effect


def test_the_ground_truth_is_no_cost_of_an_edit() -> None:
    names = ["st_lpips_alex", "truth_st_lpips_alex", "truth_psnr", "psnr_out", "realism"]
    assert costs_of(iter(names)) == ["st_lpips_alex", "realism", "psnr_out"]
