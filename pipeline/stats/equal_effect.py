"""What edits achieve, and what they cost: methods compared at equal achieved effect.

A strength is not an effect: refined generators answer differently to one and the same step along a
direction. The effect of a picture is the change of its score (`score_smile` for the edit `smile`)
against the source photograph, so that pictures of equal effect look equally smiling, whatever they
were made from. The strength that achieves an effect is found for each image and method by
interpolation, and what the edit costs there is compared on images where all methods achieve it.

Scores are in the units of `stages.face_scores`, `yaw` in degrees.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.pipeline.stats.bootstrap import Estimate, estimate
from dhr_batch.stages.base import TRUTH, edit_of, edit_stage
from dhr_batch.stages.face_scores import effect_score

if TYPE_CHECKING:
    import pandas as pd

SIGNS = (-1, 1)


def crossing(values: Sequence[float] | np.ndarray, target: float, last: bool = False) -> float:
    """Where the running maximum of the values reaches the target: an index with a fraction.

    0 where the first value is already at the target or beyond; nan where it is never reached.
    last: where the maximum stays at the target, the last such place instead of the first.
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
    """Linear interpolation at an index with a fraction; nan for nan."""
    if math.isnan(index):
        return math.nan
    first, share = int(index), index - int(index)
    if share == 0:
        return float(values[first])
    return float(values[first] + share * (values[first + 1] - values[first]))


@dataclass(frozen=True)
class Curve:
    """One edit of one image at all its strengths.

    strengths: [S], increasing, with 0, the refined picture. effects: [S], change of the score
    against the source. costs: metric -> [S]; nan where a picture has no such row.
    """

    strengths: np.ndarray
    effects: np.ndarray
    costs: Mapping[str, np.ndarray]

    def reach(self, sign: int) -> float:
        """The largest effect of the edits in one direction; negative where they go the other way.

        sign: 1 for positive strengths, -1 for negative ones.
        """
        return float((sign * self.effects[self._branch(sign)]).max())

    def place(self, effect: float) -> float:
        """Where along the strengths the effect is achieved, as an index with a fraction.

        It is looked for from strength 0 outwards, so the weakest edit that achieves it counts. The
        effect never falls on the way: an edit that turns back is taken for one that stands still.
        Nan where no strength achieves it.
        """
        sign = 1 if effect >= self.effects[self._zero] else -1
        branch = self._branch(sign)
        return at(branch, crossing(sign * self.effects[branch], sign * effect))

    def spent(self, sign: int, cost: str) -> tuple[np.ndarray, np.ndarray]:
        """A cost from strength 0 outwards, and the size of the effect against strength 0."""
        branch = self._branch(sign)
        return self.costs[cost][branch], np.abs(self.effects[branch] - self.effects[self._zero])

    def _branch(self, sign: int) -> np.ndarray:
        """Indices from strength 0 outwards."""
        zero = self._zero
        return np.arange(zero, len(self.strengths)) if sign > 0 else np.arange(zero, -1, -1)

    @property
    def _zero(self) -> int:
        return int(np.searchsorted(self.strengths, 0))


def strengths_of(metrics: pd.DataFrame) -> dict[str, list[float]]:
    """Edit -> its strengths in increasing order, by the stages of a metrics table."""
    found: dict[str, set[float]] = {}
    for stage in metrics["stage"].unique():
        if (edit := edit_of(str(stage))) is not None:
            name, strength = edit
            found.setdefault(name, set()).add(strength)
    return {name: sorted(strengths) for name, strengths in found.items()}


def curves(
    metrics: pd.DataFrame, edit: str, costs: Iterable[str], score: str = ""
) -> dict[str, Curve]:
    """Image id -> curve, of the images whose source, refined picture and edits all have the score.

    metrics: columns image_id, stage, metric, value. costs: metrics to keep. score: by default what
    `effect_score` chooses. A strength of an image without a score is left out of its curve; the
    refined picture must have one.
    """
    score, kept = score or effect_score(edit, set(metrics["metric"].unique())), list(costs)
    stages = {edit_stage(edit, s): s for s in strengths_of(metrics).get(edit, ())}
    stages = {stage: s for stage, s in stages.items() if s != 0} | {"refined": 0.0}
    rows = metrics[
        metrics["stage"].isin([*stages, "source"]) & metrics["metric"].isin([score, *kept])
    ]
    values: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    columns = (rows[name] for name in ("image_id", "stage", "metric", "value"))
    for image_id, stage, metric, value in zip(*columns, strict=True):
        values[image_id][stage, metric] = value
    found = {}
    for image_id, row in values.items():
        scored = sorted((s, stage) for stage, s in stages.items() if (stage, score) in row)
        if ("source", score) not in row or 0.0 not in [s for s, _ in scored] or len(scored) < 2:
            continue
        found[image_id] = Curve(
            np.array([s for s, _ in scored]),
            np.array([row[stage, score] - row["source", score] for _, stage in scored]),
            {
                name: np.array([row.get((stage, name), math.nan) for _, stage in scored])
                for name in kept
            },
        )
    return found


@dataclass(frozen=True)
class Match:
    """Methods at one effect on one image. places: method -> `Curve.place`."""

    image_id: str
    effect: float
    places: Mapping[str, float]


@dataclass(frozen=True)
class EqualEffect:
    """Methods compared where they achieve the same.

    matches: for each image and direction the largest effect that all methods achieve there, or
    a share of it. compared: images of which all methods have a curve.
    """

    curves: Mapping[str, Mapping[str, Curve]]
    matches: Sequence[Match]
    compared: int

    @property
    def images(self) -> list[str]:
        """Images that qualify: in at least one direction all methods achieve a common effect."""
        return list(dict.fromkeys(match.image_id for match in self.matches))

    def effect(self) -> Estimate:
        """The size of the effect at which all are compared."""
        return estimate(_by_image((m.image_id, abs(m.effect)) for m in self.matches))

    def reach(self, method: str) -> Estimate:
        """The largest effect of a method by itself, on the images that qualify."""
        own = self.curves[method]
        pairs = [
            (m.image_id, own[m.image_id].reach(1 if m.effect > 0 else -1)) for m in self.matches
        ]
        return estimate(_by_image(pairs))

    def strength(self, method: str) -> Estimate:
        """The size of the strength that a method needs."""
        own = self.curves[method]
        found = (
            (m.image_id, at(own[m.image_id].strengths, m.places[method])) for m in self.matches
        )
        return estimate(_by_image((image_id, abs(value)) for image_id, value in found))

    def costs(self, metric: str) -> dict[str, dict[str, float]]:
        """Method -> image -> value at the equal effect, the mean of both directions.

        Of the images and directions in which every method has it: the mean of one direction is no
        match for that of two. A method that never has it is left out.
        """
        found = {}
        for method, own in self.curves.items():
            values = [
                at(own[m.image_id].costs[metric], m.places[method])
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
    """Compare methods at the largest effects that all achieve, or at a share of these.

    methods: method -> image id -> curve. An image qualifies in a direction if the smallest of the
    methods' reaches is above 0 there.
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
    """Method -> image -> size of the effect where the edit has cost all methods as much.

    For each image and direction the largest cost that all methods reach with their strengths; of
    each method the effect of the strongest edit within it, against its refined picture, and 0 where
    that picture alone costs more. A cost never falls on the way: an edit does not count as giving
    identity back. The mean of both directions, of those in which every picture has the cost.

    methods: method -> image id -> curve. cost: of which less is better.
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
    """Images of which all methods have a curve, in the order of the first."""
    first, *others = methods.values()
    return [i for i in first if all(i in other for other in others)]


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> Estimate:
    """Mean of one minus other over the images that both have."""
    return estimate([one[i] - other[i] for i in one if i in other])


def _images(pairs: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """The mean of each image's values, in the order of the images."""
    found: dict[str, list[float]] = {}
    for image_id, value in pairs:
        found.setdefault(image_id, []).append(value)
    return [(image_id, float(np.mean(values))) for image_id, values in found.items()]


def _by_image(pairs: Iterable[tuple[str, float]]) -> list[float]:
    return [value for _, value in _images(pairs)]


@dataclass(frozen=True)
class Strength:
    """One edit at one strength, over images. effect: against the source; costs: by metric."""

    edit: str
    strength: float
    effect: Estimate
    costs: Mapping[str, Estimate]


def by_strength(metrics: pd.DataFrame, costs: Sequence[str]) -> list[Strength]:
    """Effect and costs of every edit at every strength; strength 0 is the refined picture.

    An edit without a score of its name has effects of no image. Values that are not finite are
    left out.
    """
    found = []
    table = metrics.pivot_table(
        index=["stage", "image_id"], columns="metric", values="value", observed=True
    )
    stages = table.index.get_level_values("stage")
    empty: list[float] = []
    for edit, strengths in strengths_of(metrics).items():
        score = effect_score(edit, table.columns)
        for strength in sorted({0.0, *strengths}):
            stage = edit_stage(edit, strength) if strength else "refined"
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
    """What an edit may cost, of the metrics there are: identity, perceptual distance to the source,
    the PSNR of what lies out-of-domain, and what changed in either part."""
    chosen = ("psnr_out", "change_in", "change_out")
    metrics = [m for m in metrics if not m.startswith(TRUTH)]
    perceptual = [m for m in metrics if "lpips" in m and not m.endswith(("_in", "_out"))]
    identity = [m for m in metrics if m.startswith("identity_")]
    return [*sorted(identity), *sorted(perceptual), *(m for m in chosen if m in set(metrics))]
