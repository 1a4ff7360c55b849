"""Editing evaluation on curves with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhr_batch.pipeline.stats.curves import Curve, at
from dhr_batch.pipeline.stats.equal_effect import (
    difference,
    effect_at_equal_cost,
    equal_effect,
)

IDENTITY = "identity_dlib_distance"


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


def test_a_reconstruction_beyond_the_effect_is_edited_back():
    smiling = line(0.1, 1.0, offset=0.1)
    # At an effect of 0.05 the strength is -0.5, at one of -0.05 it is -1.5.
    assert at(smiling.strengths, smiling.place(0.05)) == pytest.approx(-0.5)
    assert at(smiling.strengths, smiling.place(-0.05)) == pytest.approx(-1.5)


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
