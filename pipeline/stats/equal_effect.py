"""Comparison of editing methods at equal effect.

Refined generators respond differently to the same step along a direction, so methods cannot be
compared at equal strength. For each image and method, the strength at which an effect is reached
is found by linear interpolation between the measured strengths (`curves`), and costs such as the
identity distance are interpolated there. Methods are compared on the images on which all of them
reach the effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dhr_batch.pipeline.stats.bootstrap import Estimate, estimate
from dhr_batch.pipeline.stats.curves import SIGNS, Curve, at, crossing


@dataclass(frozen=True)
class Match:
    """All methods at one effect on one image.

    Attributes:
        image_id: The image.
        effect: The effect, negative for negative strengths.
        places: The result of `Curve.place` for each method.
    """

    image_id: str
    effect: float
    places: Mapping[str, float]


@dataclass(frozen=True)
class EqualEffect:
    """Methods compared at the largest effect that all of them reach on an image.

    Attributes:
        curves: Curves by method and image id.
        matches: One for each image and direction in which all methods have an effect.
        compared: Number of images for which all methods have a curve.
    """

    curves: Mapping[str, Mapping[str, Curve]]
    matches: Sequence[Match]
    compared: int

    @property
    def images(self) -> list[str]:
        """Images on which all methods reach a common effect in at least one direction."""
        return list(dict.fromkeys(match.image_id for match in self.matches))

    def effect(self) -> Estimate:
        """Return the mean magnitude of the effect at which the methods are compared."""
        return _estimate((m.image_id, abs(m.effect)) for m in self.matches)

    def reach(self, method: str) -> Estimate:
        """Return the mean of the largest effect of one method, on the images of the matches."""
        own = self.curves[method]
        return _estimate(
            (m.image_id, own[m.image_id].reach(1 if m.effect > 0 else -1)) for m in self.matches
        )

    def strength(self, method: str) -> Estimate:
        """Return the mean distance of strength from the start at which a method has the effect."""
        own = self.curves[method]
        found = ((m, own[m.image_id]) for m in self.matches)
        return _estimate(
            (m.image_id, abs(at(curve.strengths, m.places[method]) - curve.start))
            for m, curve in found
        )

    def costs(
        self, metric: str, of: Callable[[Match, float], float] = lambda match, value: value
    ) -> dict[str, dict[str, float]]:
        """Return a metric at the equal effect, by method and image id.

        A value is the mean over the directions in which all methods have the metric, because a mean
        over one direction cannot be compared with a mean over two. Methods that never have the
        metric are left out and do not count.

        Args:
            metric: The metric.
            of: What is averaged over the directions: a function of a match and the metric there.
        """
        found = {}
        for method, own in self.curves.items():
            values = [
                of(m, at(own[m.image_id].costs[metric], m.places[method]))
                if metric in own[m.image_id].costs
                else math.nan
                for m in self.matches
            ]
            if np.isfinite(values).any():
                found[method] = values
        finite = [all(map(math.isfinite, row)) for row in zip(*found.values(), strict=True)]
        ids = [match.image_id for match in self.matches]
        return {
            method: _means((i, v) for i, v, ok in zip(ids, own, finite, strict=True) if ok)
            for method, own in found.items()
        }


def equal_effect(methods: Mapping[str, Mapping[str, Curve]], share: float = 1.0) -> EqualEffect:
    """Compare methods at ``e = sign * share * min(reach)``, the minimum over all methods.

    An image counts in a direction if this minimum is greater than 0.

    Args:
        methods: Curves by method and image id.
        share: Fraction of the largest common effect, greater than 0 and at most 1.
    """
    shared = _shared(methods)
    matches = []
    for image_id in shared:
        own = {method: found[image_id] for method, found in methods.items()}
        for sign in SIGNS:
            common = min(curve.reach(sign) for curve in own.values())
            effect = sign * common * share
            places = {method: curve.place(effect) for method, curve in own.items()}
            if common > 0 and not any(map(math.isnan, places.values())):
                matches.append(Match(image_id, effect, places))
    return EqualEffect(methods, matches, len(shared))


def effect_at_equal_cost(
    methods: Mapping[str, Mapping[str, Curve]], cost: str
) -> dict[str, dict[str, float]]:
    """Return the effect of each method at equal cost, by method and image id.

    For each image and direction, the cost is the largest one that all methods reach,
    ``c = min(max(cost))`` with the minimum over methods and the maximum over strengths. The effect
    of a method is that of its strongest edit with at most this cost, ``|e(s) - e(0)|``, or 0 if its
    refined picture alone costs more. The running maximum of the cost is used, so a decrease at
    larger strengths is ignored. A value is the mean over the directions in which the cost of every
    picture was measured.

    Args:
        methods: Curves by method and image id.
        cost: A metric that is better if it is lower.
    """
    found: dict[str, list[tuple[str, float]]] = {method: [] for method in methods}
    for image_id in _shared(methods):
        for sign in SIGNS:
            spent = {m: own[image_id].spent(sign, cost) for m, own in methods.items()}
            if any(len(c) < 2 or not np.isfinite(c).all() for c, _ in spent.values()):
                continue
            level = min(costs.max() for costs, _ in spent.values())
            for method, (costs, effects) in spent.items():
                effect = at(effects, crossing(costs, level, last=True))
                found[method].append((image_id, effect))
    return {method: _means(pairs) for method, pairs in found.items()}


def _shared(methods: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Return the images for which all methods have a curve, in the order of the first method."""
    first, *others = methods.values()
    return [i for i in first if all(i in other for other in others)]


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> Estimate:
    """Estimate the mean of ``one - other`` over the images that both have."""
    return estimate([one[i] - other[i] for i in one if i in other])


def _means(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean value of each image, in the order of the images."""
    found: dict[str, list[float]] = {}
    for image_id, value in pairs:
        found.setdefault(image_id, []).append(value)
    return {image_id: float(np.mean(values)) for image_id, values in found.items()}


def _estimate(pairs: Iterable[tuple[str, float]]) -> Estimate:
    return estimate(list(_means(pairs).values()))
