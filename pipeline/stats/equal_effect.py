"""Comparison of editing methods at equal effect.

Refined generators respond differently to the same step along a direction, so methods cannot be
compared at equal strength. The effect of an edit at strength s is the change of its score against
the source photograph x0, ``e(s) = score(x_s) - score(x0)``, with `score_smile` for the edit
`smile`. For each image and method, the strength at which the effect is reached is found by linear
interpolation between the measured strengths, and costs such as the identity distance are
interpolated there. Methods are compared on the images on which all of them reach the effect.

The refined picture has strength 0. If strengths are targets (`stages.edit.ganspace`), it has the
one that changes nothing, which differs between images and is in the metric `start_<edit>`.

Scores have the units of `stages.measure.face_scores`; `yaw` is in degrees.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.pipeline.stats.bootstrap import Estimate, estimate
from dhr_batch.stages.measure.face_scores import effect_score
from dhr_batch.stages.record import START, TRUTH, edit_of, edit_stage

if TYPE_CHECKING:
    import pandas as pd

SIGNS = (-1, 1)


def crossing(values: Sequence[float] | np.ndarray, target: float, last: bool = False) -> float:
    """Return the fractional index at which the running maximum of the values reaches a target.

    Args:
        values: [N], interpolated linearly.
        target: The value to reach.
        last: If the running maximum stays at the target, return the last index instead of the
            first.

    Returns:
        An index in [0, N - 1]: 0 if the first value exceeds the target, nan if no value reaches it.

    >>> crossing([0.0, 2.0, 1.0, 4.0], 1.0), crossing([0.0, 2.0, 1.0, 4.0], 3.0)
    (0.5, 2.5)
    """
    rising = np.maximum.accumulate(np.asarray(values, np.float64))
    if target > rising[-1]:
        return math.nan
    before = int(np.searchsorted(rising, target, side="right" if last else "left")) - 1
    if before < 0:
        return 0.0
    if before == len(rising) - 1:
        return float(before)
    return float(before + (target - rising[before]) / (rising[before + 1] - rising[before]))


def at(values: Sequence[float] | np.ndarray, index: float) -> float:
    """Interpolate values linearly at a fractional index; nan for nan.

    >>> at([10.0, 20.0, 40.0], 1.5)
    30.0
    """
    if math.isnan(index):
        return math.nan
    first, fraction = int(index), index - int(index)
    if fraction == 0:
        return float(values[first])
    return float(values[first] + fraction * (values[first + 1] - values[first]))


@dataclass(frozen=True)
class Curve:
    """One edit of one image at all its strengths.

    Attributes:
        strengths: [S], increasing. That of the refined picture is always included.
        effects: [S], the change of the score against the source.
        costs: [S] for each metric; nan if it was not measured for a picture.
        start: The strength of the refined picture.
    """

    strengths: np.ndarray
    effects: np.ndarray
    costs: Mapping[str, np.ndarray]
    start: float = 0.0

    def reach(self, sign: int) -> float:
        """Return the largest effect in one direction, ``max(sign * e(s))``.

        It is negative if all these edits change the score in the opposite direction.

        Args:
            sign: 1 for strengths above the start, -1 for those below.
        """
        return float((sign * self.effects[self._branch(sign)]).max())

    def place(self, effect: float) -> float:
        """Return the fractional index into `strengths` at which an effect is reached.

        The search goes from the start outwards, so it finds the weakest edit with this effect. It
        uses the running maximum of the effect, so a decrease at larger strengths is ignored.

        Returns:
            The index, or nan if no strength reaches the effect.
        """
        sign = 1 if effect >= self.effects[self._zero] else -1
        branch = self._branch(sign)
        return at(branch, crossing(sign * self.effects[branch], sign * effect))

    def spent(self, sign: int, cost: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a cost and the magnitude of the effect from the start outwards.

        The effect is the change against the refined picture, not against the source.
        """
        branch = self._branch(sign)
        return self.costs[cost][branch], np.abs(self.effects[branch] - self.effects[self._zero])

    def _branch(self, sign: int) -> np.ndarray:
        """Return the indices of the strengths on one side, from the start outwards."""
        zero = self._zero
        return np.arange(zero, len(self.strengths)) if sign > 0 else np.arange(zero, -1, -1)

    @property
    def _zero(self) -> int:
        return int(np.searchsorted(self.strengths, self.start))


def strengths_of(metrics: pd.DataFrame) -> dict[str, list[float]]:
    """Return the strengths of each edit in a metrics table, in increasing order."""
    found: dict[str, set[float]] = {}
    for stage in metrics["stage"].unique():
        if (edit := edit_of(str(stage))) is not None:
            name, strength = edit
            found.setdefault(name, set()).add(strength)
    return {name: sorted(strengths) for name, strengths in found.items()}


def starts(metrics: pd.DataFrame, edit: str) -> dict[str, float]:
    """Return the strength of the refined picture by image id; empty if it is 0 for all."""
    rows = metrics[metrics["metric"] == START + edit]
    return dict(zip(rows["image_id"], rows["value"], strict=True))


def curves(
    metrics: pd.DataFrame, edit: str, costs: Iterable[str], score: str = ""
) -> dict[str, Curve]:
    """Return the curves of one edit by image id.

    An image has a curve if its source, its refined picture and at least one edited picture have the
    score. Strengths without the score are left out of the curve.

    Args:
        metrics: Columns `image_id`, `stage`, `metric` and `value`.
        edit: Name of the edit.
        costs: Metrics that the curves contain.
        score: The score that defines the effect; by default that of `effect_score`.
    """
    score, kept = score or effect_score(edit, set(metrics["metric"].unique())), list(costs)
    stages = {edit_stage(edit, s): s for s in strengths_of(metrics).get(edit, ())}
    unedited = starts(metrics, edit)
    # Strength 0 is the refined picture, unless it is a target.
    stages = {stage: s for stage, s in stages.items() if s != 0 or unedited} | {"refined": 0.0}
    rows = metrics[
        metrics["stage"].isin([*stages, "source"]) & metrics["metric"].isin([score, *kept])
    ]
    values: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    columns = (rows[name] for name in ("image_id", "stage", "metric", "value"))
    for image_id, stage, metric, value in zip(*columns, strict=True):
        values[image_id][stage, metric] = value
    found = {}
    for image_id, row in values.items():
        start = unedited.get(image_id, 0.0)
        own = stages | {"refined": start}
        scored = sorted((s, stage) for stage, s in own.items() if (stage, score) in row)
        if not {("source", score), ("refined", score)} <= row.keys() or len(scored) < 2:
            continue
        found[image_id] = Curve(
            np.array([s for s, _ in scored]),
            np.array([row[stage, score] - row["source", score] for _, stage in scored]),
            {
                name: np.array([row.get((stage, name), math.nan) for _, stage in scored])
                for name in kept
            },
            start,
        )
    return found


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
        return estimate(_by_image((m.image_id, abs(m.effect)) for m in self.matches))

    def reach(self, method: str) -> Estimate:
        """Return the mean of the largest effect of one method, on the images of the matches."""
        own = self.curves[method]
        pairs = [
            (m.image_id, own[m.image_id].reach(1 if m.effect > 0 else -1)) for m in self.matches
        ]
        return estimate(_by_image(pairs))

    def strength(self, method: str) -> Estimate:
        """Return the mean distance of strength from the start at which a method has the effect."""
        own = self.curves[method]
        found = ((m, own[m.image_id]) for m in self.matches)
        return estimate(
            _by_image(
                (m.image_id, abs(at(curve.strengths, m.places[method]) - curve.start))
                for m, curve in found
            )
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
            method: dict(_images((i, v) for i, v, ok in zip(ids, own, finite, strict=True) if ok))
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
    return {method: dict(_images(pairs)) for method, pairs in found.items()}


def _shared(methods: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    """Return the images for which all methods have a curve, in the order of the first method."""
    first, *others = methods.values()
    return [i for i in first if all(i in other for other in others)]


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> Estimate:
    """Estimate the mean of ``one - other`` over the images that both have."""
    return estimate([one[i] - other[i] for i in one if i in other])


def _images(pairs: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the mean value of each image, in the order of the images."""
    found: dict[str, list[float]] = {}
    for image_id, value in pairs:
        found.setdefault(image_id, []).append(value)
    return [(image_id, float(np.mean(values))) for image_id, values in found.items()]


def _by_image(pairs: Iterable[tuple[str, float]]) -> list[float]:
    return [value for _, value in _images(pairs)]


@dataclass(frozen=True)
class Strength:
    """One edit at one strength, averaged over images.

    Attributes:
        effect: The mean change of the score against the source.
        costs: The mean of each metric.
    """

    edit: str
    strength: float
    effect: Estimate
    costs: Mapping[str, Estimate]


def by_strength(metrics: pd.DataFrame, costs: Sequence[str]) -> list[Strength]:
    """Return the effect and costs of every edit at every strength, and of the refined picture.

    The refined picture has the strength 0, or the mean of `starts`.

    Values that are not finite are left out. If the score of an edit was not measured, the estimate
    of its effect has n = 0.

    Args:
        metrics: Columns `image_id`, `stage`, `metric` and `value`.
        costs: The metrics to average.
    """
    found = []
    table = metrics.pivot_table(
        index=["stage", "image_id"], columns="metric", values="value", observed=True
    )
    stages = table.index.get_level_values("stage")
    empty: list[float] = []
    for edit, strengths in strengths_of(metrics).items():
        score = effect_score(edit, table.columns)
        unedited = list(starts(metrics, edit).values())
        places = [(s, edit_stage(edit, s)) for s in strengths if s != 0 or unedited]
        places.append((round(float(np.mean(unedited)), 3) if unedited else 0.0, "refined"))
        for strength, stage in sorted(places):
            rows = table.xs(stage, level="stage") if stage in stages else table.iloc[:0]
            effect = np.array(empty)
            if score in table and "source" in stages:
                before = table.xs("source", level="stage")[score]
                effect = (rows[score] - before).dropna().to_numpy()
            values = {c: _finite(rows[c].to_numpy()) for c in costs if c in rows}
            means = {c: estimate(v) for c, v in values.items() if len(v)}
            found.append(Strength(edit, strength, estimate(effect), means))
    return found


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def costs_of(metrics: Iterable[str]) -> list[str]:
    """Return those of the metrics that measure costs of an edit.

    These are identity, perceptual distance to the source, realism, the PSNR of the out-of-domain
    part, and the change of the in-domain and the out-of-domain part.
    """
    chosen = ("realism", "psnr_out", "change_in", "change_out")
    metrics = [m for m in metrics if not m.startswith(TRUTH)]
    perceptual = [m for m in metrics if "lpips" in m and not m.endswith(("_in", "_out"))]
    identity = [m for m in metrics if m.startswith("identity_")]
    return [*sorted(identity), *sorted(perceptual), *(m for m in chosen if m in set(metrics))]
