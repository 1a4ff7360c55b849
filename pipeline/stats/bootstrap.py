"""Means, medians and ratios with bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr, stdtrit

LEVEL = 0.95
DRAWS = 10_000
# Values that are resampled at a time.
_CHUNK = 2**20


@dataclass(frozen=True)
class Estimate:
    """A statistic and its confidence interval.

    Attributes:
        value: The statistic; nan for no values.
        low: Lower end of the interval; nan for fewer than two values.
        high: Upper end of the interval; nan for fewer than two values.
        n: Number of values.
    """

    value: float
    low: float
    high: float
    n: int


def estimate(
    values: Sequence[float] | np.ndarray,
    statistic: Literal["mean", "median"] = "mean",
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Estimate a statistic with an expanded percentile interval.

    The interval lies between the quantiles p and 1 - p of the statistic over resamples, with
    ``p = Phi(sqrt(n / (n - 1)) * t)``. Phi is the normal distribution function, and t the quantile
    ``(1 - level) / 2`` of Student's t distribution with n - 1 degrees of freedom. For few values
    this interval is wider than the plain percentile interval, which contains the mean of five
    values in only 80 % of cases.

    Source: Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician
    69(4), 2015, section 5.

    Args:
        values: [n], one per image.
        statistic: What to estimate.
        level: Confidence level, between 0 and 1.
        draws: Number of resamples.
        seed: Seed of the resamples, so that equal values give equal intervals.

    >>> found = estimate([1.0, 2.0, 3.0, 4.0])
    >>> found.value, found.low < 2.5 < found.high, found.n
    (2.5, True, 4)
    """
    known = np.asarray(values, np.float64)
    function = np.mean if statistic == "mean" else np.median
    return _interval(lambda index: function(known[index], axis=-1), len(known), level, draws, seed)


def ratio(parts: Sequence[float], counts: Sequence[float]) -> Estimate:
    """Estimate ``sum(parts) / sum(counts)``, for example bytes per image over shards.

    Pairs are resampled. The interval is that of `estimate`.

    Args:
        parts: [n].
        counts: [n], greater than 0.

    >>> ratio([10.0, 30.0], [1.0, 3.0]).value
    10.0
    """
    above, below = np.asarray(parts, np.float64), np.asarray(counts, np.float64)
    return _interval(
        lambda index: above[index].sum(-1) / below[index].sum(-1), len(above), LEVEL, DRAWS, 0
    )


def _interval(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, level: float, draws: int, seed: int
) -> Estimate:
    """Estimate a statistic that maps indices [..., n] of resampled values to values [...]."""
    if n < 2:
        value = float(statistic(np.arange(n))) if n else math.nan
        return Estimate(value, math.nan, math.nan, n)
    random = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // n)
    drawn = [
        statistic(random.integers(0, n, (min(chunk, draws - first), n)))
        for first in range(0, draws, chunk)
    ]
    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2)))
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return Estimate(float(statistic(np.arange(n))), float(low), float(high), n)
