"""The numbers of a report: a wide table of metrics, its summary, and the data of plots."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.pipeline.report.data import MIN_IN_DOMAIN_FACE, RunData
from dhr_batch.pipeline.report.metrics import metric_key, of_truth, stage_key
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.stats.curves import starts
from dhr_batch.stages.measure.face_scores import effect_score
from dhr_batch.stages.record import edit_stage
from dhr_batch.stages.registry import STAGES

if TYPE_CHECKING:
    import pandas as pd

# A longer time without a finished image, in seconds, is a pause.
_PAUSE = 600.0
SETS = (
    "Each stage against the aligned photographs, as stored (8 bits, full size). They are biased "
    "for few pictures, so compare only figures with the same n."
)
_MAX_INTERVALS = 60


def wide(data: RunData) -> pd.DataFrame:
    """Return a table with one row per image and stage, and one column per metric.

    Two more columns are `in_domain_face`, the in-domain share of the face, and `counted`: `yes` if
    the share is at least 40 %, `no` if it is less, and empty if it is unknown.
    """
    table = data.metrics.pivot_table(
        index=["image_id", "stage"],
        columns="metric",
        values="value",
        aggfunc="first",
        observed=True,
    )
    table.columns = list(table.columns)
    table = table.reindex(columns=sorted(table.columns, key=metric_key)).reset_index()
    table = table.astype({"image_id": object, "stage": object})
    share = table["image_id"].map(data.in_domain_face)
    table.insert(2, "in_domain_face", share.astype("float64"))
    table.insert(3, "counted", [_counted(value) for value in table["in_domain_face"]])
    order = {image_id: n for n, image_id in enumerate(data.image_ids)}
    keys = [
        (order[i], stage_key(s)) for i, s in zip(table["image_id"], table["stage"], strict=True)
    ]
    return table.iloc[sorted(range(len(keys)), key=keys.__getitem__)].reset_index(drop=True)


def _counted(share: float) -> str:
    if math.isnan(share):
        return ""
    return "yes" if share >= MIN_IN_DOMAIN_FACE else "no"


def summary(data: RunData, *, everything: bool = False) -> pd.DataFrame:
    """Return mean, median, min, max and n for each stage, metric and model.

    Infinite values, such as the PSNR of an exact copy, are left out.

    Args:
        data: The run.
        everything: Whether to include images with less than 40 % of the face in-domain.
    """
    long = of_truth(data.metrics, False)
    if not everything:
        long = long[~long["image_id"].isin(data.excluded())]
    long = long.assign(value=long["value"].replace([np.inf, -np.inf], np.nan))
    table = (
        long.groupby(["stage", "metric", "model"], sort=False, observed=True)["value"]
        .agg(["mean", "median", "min", "max", "count"])
        .rename(columns={"count": "n"})
        .reset_index()
    )
    keys = [
        (stage_key(stage), metric_key(metric), model)
        for stage, metric, model in zip(
            table["stage"], table["metric"], table["model"], strict=True
        )
    ]
    return table.iloc[sorted(range(len(keys)), key=keys.__getitem__)].reset_index(drop=True)


@dataclass(frozen=True)
class Throughput:
    """Images per second over the working time.

    Attributes:
        mean: The mean rate.
        edges: [N + 1], limits of the intervals in seconds.
        rates: [N], the rate in each interval.
    """

    mean: float
    edges: list[float]
    rates: list[float]


def throughput(points: Sequence[Sequence[float]]) -> Throughput | None:
    """Compute the throughput of a run, without pauses of more than ten minutes.

    Args:
        points: Unix time and total number of finished images, in the order of time.

    Returns:
        The throughput, or None if no image was finished or no time has passed.
    """
    times, counts = np.array([[0.0, 0.0], *points]).T[:, 1:]
    steps, done = np.diff(times), np.maximum(np.diff(counts), 0)
    steps = np.where((done == 0) & (steps > _PAUSE), 0, np.maximum(steps, 0))
    clock, total = np.append(0, steps.cumsum()), np.append(0, done.cumsum())
    if clock[-1] <= 0 or total[-1] <= 0:
        return None
    # With more intervals than images, the plot would show the ends of single images, not a rate.
    ends = min(_MAX_INTERVALS, len(points), max(2, int(total[-1])))
    edges = np.linspace(0, clock[-1], ends)
    rates = np.diff(np.interp(edges, clock, total)) / np.diff(edges)
    return Throughput(float(total[-1] / clock[-1]), edges.tolist(), rates.tolist())


def seconds_per_image(data: RunData, until: str) -> dict[str, float]:
    """Return the mean seconds per image of each shard, by image id.

    The mean of a stage is over the images that it has computed (`Manifest.computed`).

    Args:
        data: The run. Shards without an image that the stage has computed are left out.
        until: The last stage whose time is included.
    """
    seconds: dict[str, float] = {}
    for number, image_ids in enumerate(data.plan.shards):
        shard = data.shards.get(number, Manifest())
        times = shard.stage_seconds
        if until in times and shard.computed(until):
            names = list(times)[: list(times).index(until) + 1]
            spent = sum(times[name] / shard.computed(name) for name in names)
            seconds |= dict.fromkeys(image_ids, spent)
    return seconds


@dataclass(frozen=True)
class StageSeconds:
    """The time that workers have spent on a stage.

    Attributes:
        stage: The stage.
        mean: Mean seconds of a worker per image, over the images that the stage has computed.
        images: The number of these images.
        total: Seconds of all workers.
    """

    stage: str
    mean: float
    images: int
    total: float


def stage_seconds(data: RunData) -> list[StageSeconds]:
    """Return the time of each stage, in the order of the stages; empty if none is recorded."""
    found = []
    for stage in STAGES:
        shards = [shard for shard in data.shards.values() if stage in shard.stage_seconds]
        images = sum(shard.computed(stage) for shard in shards)
        total = float(sum(shard.stage_seconds[stage] for shard in shards))
        if images:
            found.append(StageSeconds(stage, total / images, images, total))
    return found


def edit_effects(data: RunData, edit: str, identity: str) -> pd.DataFrame:
    """Return the effect and the identity of an edit, with one row per image and strength.

    Images that averages leave out are left out here, too.

    Args:
        data: The run.
        edit: Name of the edit.
        identity: Name of the identity metric.

    Returns:
        Columns `image_id`, `strength`, `effect` and `identity`. The strength of the refined picture
        is 0, or the mean of those with which the edit changes nothing (`starts`). The
        effect is the change of the edit's score against the source; nan without such a score.
    """
    import pandas as pd

    unedited = list(starts(data.metrics, edit).values())
    stages = {"source": math.nan, "refined": float(np.mean(unedited)) if unedited else 0.0}
    stages |= {edit_stage(edit, s): s for name, s in data.edits if name == edit}
    long = data.metrics
    score = effect_score(edit, set(long["metric"].unique()))
    long = long[long["stage"].isin(stages) & long["metric"].isin([score, identity])]
    long = long[~long["image_id"].isin(data.excluded())]
    table = long.pivot_table(
        index=["image_id", "stage"], columns="metric", values="value", observed=True
    ).reset_index()
    found = pd.DataFrame(
        {
            "image_id": table["image_id"].astype(object),
            "strength": table["stage"].astype(object).map(stages).astype("float64"),
            "effect": table.get(score, np.nan),
            "identity": table.get(identity, np.nan),
        }
    )
    before = found[found["strength"].isna()].set_index("image_id")["effect"]
    found["effect"] = found["effect"] - found["image_id"].map(before).astype("float64")
    return found.dropna(subset=["identity"]).sort_values(["image_id", "strength"])


@dataclass(frozen=True)
class FailureClass:
    """Images that failed with the same class of error.

    Attributes:
        name: The class.
        count: Number of images.
        example: The row of the first image in the table `quarantine`.
    """

    name: str
    count: int
    example: dict[str, str]


def failures(data: RunData) -> list[FailureClass]:
    """Return the classes of failure, the most frequent first."""
    counts = Counter(row["error_class"] for row in data.quarantine).most_common()
    first = {row["error_class"]: row for row in reversed(data.quarantine)}
    return [FailureClass(name, n, first[name]) for name, n in counts]
