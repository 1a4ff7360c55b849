"""Editing evaluation on curves with known answers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from dhr_batch.pipeline.stats.bootstrap import estimate, ratio
from dhr_batch.pipeline.stats.equal_effect import (
    Curve,
    at,
    by_strength,
    costs_of,
    crossing,
    curves,
    difference,
    effect_at_equal_cost,
    equal_effect,
    strengths_of,
)

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


def line(slope: float, cost: float, offset: float = 0.0, strengths=(-2, -1, 0, 1, 2)) -> Curve:
    """Effect `offset + slope s`, cost `cost s^2 / 4` and a background that loses 1 dB a step."""
    s = np.array(strengths, float)
    return Curve(s, offset + slope * s, {IDENTITY: cost * s**2 / 4, "psnr_out": 40 - np.abs(s)})


def test_equal_effect_of_lines():
    """`b` needs half the strength of `a`: its largest common step is 1, where its cost is 0.25."""
    methods = {"a": {"x": line(0.1, 1.0)}, "b": {"x": line(0.2, 1.0)}}
    found = equal_effect(methods)
    assert [m.effect for m in found.matches] == pytest.approx([-0.2, 0.2])
    assert found.images == ["x"]
    assert found.effect().value == pytest.approx(0.2)
    assert found.strength("a").value == pytest.approx(2)
    assert found.strength("b").value == pytest.approx(1)
    assert found.reach("b").value == pytest.approx(0.4)
    assert found.costs(IDENTITY) == {"a": {"x": pytest.approx(1)}, "b": {"x": pytest.approx(0.25)}}
    assert found.costs("psnr_out")["b"] == {"x": pytest.approx(39)}
    half = equal_effect(methods, share=0.5)
    assert half.effect().value == pytest.approx(0.1)
    # Between the measured strengths 0 and 1 costs are linear, not quadratic.
    assert half.costs(IDENTITY)["b"]["x"] == pytest.approx(0.125)


def path(costs, scores) -> Curve:
    """An edit in one direction, of the strengths 0, 1 and 2."""
    return Curve(np.array([0.0, 1, 2]), np.array(scores) + 5.0, {IDENTITY: np.array(costs)})


def test_effects_at_equal_identity_are_within_the_largest_distance_that_all_reach():
    keeps, loses = path((0.1, 0.2, 0.3), (0, 1, 2)), path((0.1, 0.3, 0.5), (0, -1.5, -3))
    for methods in ({"a": keeps, "b": loses}, {"b": loses, "a": keeps}):
        found = effect_at_equal_cost({m: {"x": own} for m, own in methods.items()}, IDENTITY)
        assert found == {"a": {"x": pytest.approx(2)}, "b": {"x": pytest.approx(1.5)}}


def test_equal_identity_is_the_mean_of_both_directions_that_all_methods_have():
    both = effect_at_equal_cost({"a": {"x": line(1, 1)}, "b": {"x": line(2, 2)}}, IDENTITY)
    assert both == {"a": {"x": pytest.approx(2)}, "b": {"x": pytest.approx(2 * (1 + 0.5 / 1.5))}}
    one = {"a": {"x": line(1, 1)}, "b": {"x": path((0, 1, 2), (0, 1, 2)), "y": line(1, 1)}}
    assert effect_at_equal_cost(one, IDENTITY) == {
        "a": {"x": pytest.approx(2)},
        "b": {"x": pytest.approx(1)},
    }


def test_identity_that_comes_back_counts_as_lost():
    # The strongest edit within 0.5 is the full one, though its own distance is smaller.
    turns, far = path((0.2, 0.5, 0.3), (0, 1, 3)), path((0.6, 0.7, 0.8), (0, 1, 2))
    assert effect_at_equal_cost({"a": {"x": turns}, "b": {"x": far}}, IDENTITY) == {
        "a": {"x": pytest.approx(3)},
        "b": {"x": 0.0},
    }
    unknown = path((0.2, math.nan, 0.3), (0, 1, 3))
    found = effect_at_equal_cost({"a": {"x": turns}, "b": {"x": unknown}}, IDENTITY)
    assert found == {"a": {}, "b": {}}


def test_effects_are_against_the_source():
    """A reconstruction that smiles already needs a smaller step up and a larger one down."""
    methods = {"faithful": {"x": line(0.1, 1.0)}, "smiling": {"x": line(0.1, 1.0, offset=0.1)}}
    down, up = equal_effect(methods).matches
    assert up.effect == pytest.approx(0.2)
    assert up.places == {"faithful": pytest.approx(4), "smiling": pytest.approx(3)}
    assert down.effect == pytest.approx(-0.1)
    assert down.places == {"faithful": pytest.approx(1), "smiling": pytest.approx(0)}


def test_images_qualify_where_all_methods_get():
    stuck = line(0.0, 1.0, offset=-0.05)
    methods = {
        "a": {"both": line(0.1, 1.0), "down": line(0.1, 1.0), "lost": line(0.1, 1.0)},
        "b": {"both": line(0.1, 1.0), "down": stuck, "only b": line(0.1, 1.0)},
    }
    found = equal_effect(methods)
    assert found.compared == 2
    assert [(m.image_id, round(m.effect, 6)) for m in found.matches] == [
        ("both", -0.2),
        ("both", 0.2),
        ("down", -0.05),
    ]
    assert found.effect().n == 2
    assert found.effect().value == pytest.approx((0.2 + 0.05) / 2)
    none = equal_effect({"a": {"x": line(-0.1, 1)}, "b": {"x": line(0.1, 1)}})
    assert none.images == []
    assert none.costs(IDENTITY) == {}
    assert math.isnan(none.effect().value)


def test_an_edit_that_turns_back_stands_still():
    s = np.array([0.0, 1, 2, 3])
    curve = Curve(s, np.array([0, 0.2, 0.1, 0.4]), {IDENTITY: s})
    assert curve.place(0.2) == 1
    assert curve.place(0.3) == pytest.approx(2.5)
    assert curve.reach(1) == pytest.approx(0.4)
    assert curve.reach(-1) == 0


def test_the_difference_of_a_method_to_itself_is_nothing():
    draw = np.random.default_rng(0)
    own = {f"{i}": line(0.1 + draw.random(), draw.random()) for i in range(9)}
    costs = equal_effect({"a": own, "b": dict(own)}).costs(IDENTITY)
    found = difference(costs["a"], costs["b"])
    assert (found.value, found.low, found.high, found.n) == (0, 0, 0, 9)


def test_costs_are_of_images_that_every_method_has():
    blind = Curve(np.array([0.0, 1]), np.array([0, 0.1]), {IDENTITY: np.array([0, math.nan])})
    seen = Curve(np.array([0.0, 1]), np.array([0, 0.1]), {IDENTITY: np.array([0, 1.0])})
    maskless = Curve(np.array([0.0, 1]), np.array([0, 0.1]), {})
    methods = {
        "a": {"x": seen, "y": seen},
        "b": {"x": seen, "y": blind},
        "c": {"x": maskless, "y": maskless},
    }
    assert equal_effect(methods).costs(IDENTITY) == {"a": {"x": 1.0}, "b": {"x": 1.0}}


def test_a_cost_that_is_missed_in_one_direction_is_of_the_other_for_all():
    """Down costs 1, up costs 3. `a` saw no face in its edit up, and is else the same as `b`."""
    s, effects = np.array([-1.0, 0, 1]), np.array([-0.1, 0, 0.1])
    whole = Curve(s, effects, {IDENTITY: np.array([1, 0, 3.0])})
    half = Curve(s, effects, {IDENTITY: np.array([1, 0, math.nan])})
    found = equal_effect({"a": {"x": half, "y": whole}, "b": {"x": whole, "y": whole}})
    assert len(found.matches) == 4
    costs = found.costs(IDENTITY)
    assert costs == {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.0, "y": 2.0}}
    assert difference(costs["a"], costs["b"]).value == 0


def test_intervals_hold_the_mean_of_a_skewed_distribution():
    """Exponential with mean 1: of 400 intervals of 95 %, about 380 must hold it."""
    draw = np.random.default_rng(0)
    for n, fewest in ((6, 345), (40, 365)):
        found = [estimate(draw.exponential(size=n), draws=1000) for _ in range(400)]
        held = sum(e.low <= 1 <= e.high for e in found)
        assert fewest <= held <= 395, (n, held)


def test_an_interval_of_many_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(3, 2, 2000)
    found = estimate(values)
    error = 1.96 * values.std() / math.sqrt(2000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)
    assert found == estimate(values)
    middle = estimate(values, "median")
    assert middle.value == pytest.approx(np.median(values))
    assert middle.low < middle.value < middle.high


def test_a_ratio_weighs_by_the_counts():
    """(60 + 10) / (3 + 1); the mean of 20 and 10 would be 15."""
    found = ratio([60, 10], [3, 1])
    assert (found.value, found.n) == (17.5, 2)
    # A draw has both shards, or one of them twice.
    assert (found.low, found.high) == (10, 20)
    one = ratio([60], [3])
    assert (one.value, one.n) == (20, 1)
    assert math.isnan(one.low)
    assert math.isnan(ratio([], []).value)
    parts = [3.0, 1, 4, 1, 5]
    assert ratio(parts, [1] * 5) == estimate(parts)


def test_intervals_of_nearly_nothing():
    assert math.isnan(estimate([]).value)
    one = estimate([4.0])
    assert (one.value, one.n) == (4.0, 1)
    assert math.isnan(one.low)
    same = estimate([2.0, 2.0, 2.0])
    assert (same.low, same.high) == (2.0, 2.0)


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
    found = curves(metrics, "smile", [IDENTITY])
    assert found.keys() == {"x", "y"}
    np.testing.assert_array_equal(found["x"].strengths, [-1.5, 0, 2])
    np.testing.assert_allclose(found["y"].effects, [-0.2, 0.01, 0.3])
    np.testing.assert_allclose(found["x"].costs[IDENTITY], [0.2, 0.1, 0.3])
    assert curves(metrics, "age", [IDENTITY]) == {}

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
    found = curves(metrics, "x", [IDENTITY])["i"]
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
    found = curves(metrics, "yaw", [])
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
