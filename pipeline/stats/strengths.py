"""The mean effect and costs of edits at each strength, over the images of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.pipeline.stats.bootstrap import Estimate, estimate
from dhr_batch.pipeline.stats.curves import starts, strengths_of
from dhr_batch.stages.measure.face_scores import effect_score
from dhr_batch.stages.record import TRUTH, edit_stage

if TYPE_CHECKING:
    import pandas as pd


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
