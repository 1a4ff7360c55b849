"""The section of a report on speed: seconds of each stage, throughput, and quality against time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dhr_batch.pipeline.report import plots, summaries
from dhr_batch.pipeline.report.data import RunData
from dhr_batch.pipeline.report.page import Cell, Column, Plot, Section, Shown, Table
from dhr_batch.pipeline.report.plots import Series
from dhr_batch.pipeline.report.summaries import StageSeconds
from dhr_batch.pipeline.units import duration, number

# Points of a cloud. More make the page slow but not the plot clearer.
MAX_CLOUD = 500
HEADS = ("stage", "s per image", "share", "images", "s of all workers")
TITLE = "Seconds of a worker per image, by stage"
TEXT = "Seconds of one worker, averaged over the images that the stage has computed."


def section(data: RunData) -> Section | None:
    """Return the section, or None if nothing is known of the speed."""
    stages = summaries.stage_seconds(data)
    found = [_stage_plot(stages), _psnr_plot(data), _throughput_plot(data)]
    drawn = [plot for plot in found if plot is not None]
    if not drawn:
        return None
    heads = [Column(HEADS[0]), *(Column(head, number=True) for head in HEADS[1:])]
    tables = [Table(TITLE, heads, rows(stages))] if stages else []
    return Section("speed", "Speed", (TEXT,), drawn, tables=tables)


def rows(stages: Sequence[StageSeconds]) -> list[list[Cell]]:
    """Return a row under `HEADS` for each stage, and one for all of them."""
    mean, total = (sum(own) for own in zip(*((s.mean, s.total) for s in stages), strict=True))
    found: list[list[Cell]] = [
        [s.stage, s.mean, Shown(s.total, f"{s.total / (total or 1):.0%}"), s.images, s.total]
        for s in stages
    ]
    passed = min(s.images for s in stages)
    return [*found, ["all stages", mean, Shown(total, "100%"), passed, total]]


def _stage_plot(stages: Sequence[StageSeconds]) -> Plot | None:
    svg = plots.bars({s.stage: s.mean for s in stages}, "Seconds per image by stage")
    if svg is None:
        return None
    hint = "of one worker, over the images that the stage has computed"
    means = {"all stages [s]": number(sum(s.mean for s in stages))}
    return Plot("Seconds per image by stage", svg, hint, means)


def _psnr_plot(data: RunData) -> Plot | None:
    """Plot means of shards, because times are recorded per shard."""
    long = data.metrics[data.metrics["metric"] == "psnr"]
    long = long[~long["image_id"].isin(data.excluded())]
    shards = data.plan.shard_of()
    clouds: list[Series] = []
    for stage, until in (("inverted", "embed"), ("refined", "refine")):
        seconds = summaries.seconds_per_image(data, until)
        found: dict[int, list[float]] = defaultdict(list)
        times: dict[int, float] = {}
        chosen = long[long["stage"] == stage]
        for image_id, value in zip(chosen["image_id"], chosen["value"].tolist(), strict=True):
            if image_id in seconds and np.isfinite(value):
                found[shards[image_id]].append(value)
                times[shards[image_id]] = seconds[image_id]
        drawn = list(found)[:: max(1, len(found) // MAX_CLOUD)]
        values = [float(np.mean(found[n])) for n in drawn]
        notes = [f"{stage}, shard {n}: {number(v)} dB" for n, v in zip(drawn, values, strict=True)]
        clouds.append(Series(stage, [times[n] for n in drawn], values, notes))
    if not all(cloud.x for cloud in clouds):
        return None
    means = Series(
        "mean",
        [float(np.mean(cloud.x)) for cloud in clouds],
        [float(np.mean(cloud.y)) for cloud in clouds],
        [cloud.name for cloud in clouds],
    )
    svg = plots.curves([means], "seconds per image", "PSNR [dB]", clouds)
    hint = "time of a worker per image, up to and including the stage; faint dots are shards"
    return None if svg is None else Plot("PSNR against seconds", svg, hint)


def _throughput_plot(data: RunData) -> Plot | None:
    speed = summaries.throughput(data.throughput)
    if speed is None:
        return None
    last = speed.edges[-1]
    unit, length = next((u for u in (("h", 3600.0), ("min", 60.0)) if last >= 2 * u[1]), ("s", 1.0))
    edges = [edge / length for edge in speed.edges]
    svg = plots.steps(edges, speed.rates, f"time of work [{unit}]", "images/s")
    hint = f"all workers, over {duration(last)} of work, without pauses"
    return Plot("Throughput", svg, hint, {"images/s": number(speed.mean)})
