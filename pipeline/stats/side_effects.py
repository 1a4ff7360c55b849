"""Side effects of edits: what else changes in a face when an edit has reached its effect.

The change of a score is taken against the source photograph, as the effect of an edit is
(`curves`). Where it was measured, the effect is also seen by another judge, a network that
the direction of the edit was not fitted to (`stages.measure.face_scores.judge_score`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.pipeline.stats.bootstrap import Estimate, estimate
from dhr_batch.pipeline.stats.curves import SIGNS, Curve, at, curves_of, strengths_of
from dhr_batch.stages.measure.face_scores import SCORE, effect_score, judge_score

if TYPE_CHECKING:
    import pandas as pd

# At least this share of the images reaches the effect at which side effects are compared.
REACHED = 0.8


def before(metrics: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the scores of the source photographs by metric and image id.

    Args:
        metrics: Columns `image_id`, `stage`, `metric` and `value`.
    """
    found: dict[str, dict[str, float]] = {}
    rows = metrics[metrics["stage"] == "source"]
    columns = (rows[name] for name in ("image_id", "metric", "value"))
    for image_id, metric, value in zip(*columns, strict=True):
        if metric.startswith(SCORE):
            found.setdefault(str(metric), {})[image_id] = value
    return found


def others(edit: str, scores: Iterable[str]) -> list[str]:
    """Return the scores whose changes are side effects of an edit: all but its own.

    The yaw in degrees and without unit are one score, and so is what another judge sees of it.

    Example:
        >>> others("yaw", ["score_yaw", "score_yaw_degrees", "score_yaw_mesh", "score_age"])
        ['score_age']
    """
    names = list(scores)
    own = {f"{SCORE}{edit}", effect_score(edit, names), judge_score(edit)}
    own |= {f"{SCORE}yaw"} if effect_score("yaw", names) != f"{SCORE}yaw" else set()
    return [name for name in names if name not in own]


@dataclass(frozen=True)
class SideEffects:
    """The side effects of one edit in one direction, at one effect.

    Attributes:
        edit: Name of the edit.
        effect: The effect, which `REACHED` of the images reach; negative for negative strengths.
        strength: The strengths that the images need for it.
        judged: The effect by the score of another judge, or None without one.
        changes: The changes of other scores by name.
        sizes: The sizes of these changes.
        costs: Other metrics of the edited pictures, such as the identity distance.
    """

    edit: str
    effect: float
    strength: Estimate
    judged: Estimate | None
    changes: Mapping[str, Estimate]
    sizes: Mapping[str, Estimate]
    costs: Mapping[str, Estimate]


def side_effects(metrics: pd.DataFrame, costs: Sequence[str]) -> list[SideEffects]:
    """Return the side effects of every edit, in each direction in which images have an effect.

    Args:
        metrics: Columns `image_id`, `stage`, `metric` and `value`.
        costs: The metrics that are estimated beside the changes.
    """
    sources = before(metrics)
    found = []
    for edit in strengths_of(metrics):
        scores = [*others(edit, sources), *filter(sources.get, (judge_score(edit),))]
        if not scores:
            continue
        curves = curves_of(metrics, edit, [*costs, *scores])
        for sign in SIGNS:
            rows = _at_one_effect(curves, sign)
            if rows is None:
                continue
            effect, places = rows
            changes = {s: _values(curves, places, s, sources[s]) for s in scores}
            judged = changes.pop(judge_score(edit), np.empty(0))
            changes = {name: own for name, own in changes.items() if len(own)}
            spent = {c: _values(curves, places, c) for c in costs}
            found.append(
                SideEffects(
                    edit,
                    effect,
                    estimate([at(curves[i].strengths, place) for i, place in places.items()]),
                    estimate(judged) if len(judged) else None,
                    {name: estimate(own) for name, own in changes.items()},
                    {name: estimate(np.abs(own)) for name, own in changes.items()},
                    {name: estimate(own) for name, own in spent.items() if len(own)},
                )
            )
    return found


def _at_one_effect(curves: Mapping[str, Curve], sign: int) -> tuple[float, dict[str, float]] | None:
    """Return an effect, and where the curves of the images that reach it have it."""
    reaches = sorted(c.reach(sign) for c in curves.values())
    if not reaches:
        return None
    effect = reaches[int((1 - REACHED) * len(reaches) + 1e-9)]
    places = {i: c.place(sign * effect) for i, c in curves.items()}
    places = {i: place for i, place in places.items() if not math.isnan(place)}
    return (sign * effect, places) if effect > 0 and places else None


def _values(
    curves: Mapping[str, Curve],
    places: Mapping[str, float],
    metric: str,
    sources: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Return the values of a metric at the places, [N], finite.

    Args:
        curves: Curves by image.
        places: Where each of them is read.
        metric: The metric.
        sources: If given, the values are changes against these. Images without one are left out.
    """
    before = dict.fromkeys(places, 0.0) if sources is None else sources
    values = [at(curves[i].costs[metric], p) - before.get(i, math.nan) for i, p in places.items()]
    return np.array([value for value in values if math.isfinite(value)])
