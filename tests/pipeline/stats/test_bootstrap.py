"""Intervals of means with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhr_batch.pipeline.stats.bootstrap import estimate, ratio


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
