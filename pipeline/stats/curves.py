"""The effect and the costs of an edit of one image, as curves over its strengths.

The effect of an edit at strength s is the change of its score against the source photograph x0,
``e(s) = score(x_s) - score(x0)``, with `score_smile` for the edit `smile`. Scores have the units of
`stages.measure.face_scores`; `yaw` is in degrees.

The refined picture has strength 0. If strengths are targets (`stages.edit.ganspace`), it has the
one that changes nothing, which differs between images and is in the metric `start_<edit>`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.stages.measure.face_scores import effect_score
from dhr_batch.stages.record import START, edit_of, edit_stage

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


def curves_of(
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
