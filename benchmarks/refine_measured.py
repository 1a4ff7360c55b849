"""What `refine_speed` measures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from dhr_batch.benchmarks import equal_identity
from dhr_batch.benchmarks.refine_methods import (
    METHODS,
    PUBLISHED,
    Method,
    Steps,
    configured,
    context_of,
    extrapolated,
    memory,
    published_rates,
    stage_of,
    synthetic,
    trial,
)
from dhr_batch.benchmarks.refine_table import EFFECT, METRICS, Row, pair, row_of, summary, times
from dhr_batch.pipeline.datasets import named as datasets
from dhr_batch.pipeline.engine.worker import read
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.stages.base import Context, Record, some

TUNED_ON = "portraits"
# Steps of a method whose cost alone is measured, on a CPU.
SHARE = {"default": Steps(0, 4, 2), "baseline": Steps(4, 5, 5)}


@dataclass(frozen=True)
class Photographs:
    """Where the photographs are. cache: folder for their codes."""

    dataset: str
    images: int | None = None
    aligned: bool = False
    cache: Path | None = None

    def embedded(self, config: Config, context: Context) -> Iterator[Record]:
        """Aligned and embedded by the settings. Images for which that fails are named and left."""
        items = datasets.list_images(datasets.find(self.dataset))[: self.images]
        families = ("align", "embed")
        stages = [stage_of(family, getattr(config, family), context) for family in families]
        made = json.dumps([config.generator, config.align, config.embed, context.aligned])
        for item in items:
            record = read(item, "")
            name = hashlib.sha256(made.encode() + (record.data or b"")).hexdigest()[:32]
            kept = self.cache / f"{name}.npz" if self.cache else None
            if kept and kept.exists():
                record = replace(record, data=None, **np.load(kept))
            else:
                for stage in stages:
                    (record,) = stage.run([record])
                if kept and record.failure is None:
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    names = ("image", "latent", "inverted")
                    np.savez(kept, **{n: some(getattr(record, n)) for n in names})
            if record.failure is None:
                yield record
            else:
                click.echo(f"left out: {record.failure.message}", err=True)


class Comparison:
    """Default, baseline and, on wish, the published rates on one photograph after the other."""

    def __init__(self, config: Config, context: Context, published: bool) -> None:
        edit = {"direction": "smile", "strengths": [-2, -1, 1, 2]}
        self.edit = stage_of("edit", config.edit | {"edits": [edit]}, context)
        self.measure = stage_of("measure", config.measure, context)
        self.methods = [make(config, context) for make in METHODS.values()]
        self.rates = published_rates(config, context) if published else None
        self.images: dict[str, list[Row]] = {m.name: [] for m in self.methods}
        self.pairs: list[Row] = []

    def add(self, record: Record, first: int) -> str:
        """Measure all methods, the one at `first` first. Returns why the image was left out."""
        trials = {
            m.name: trial(m, [record]) for m in (*self.methods[first:], *self.methods[:first])
        }
        done = {name: t.records[0] for name, t in trials.items()}
        if self.rates:
            # Its time is the baseline's, whose work it would do as published.
            (done["published rates"],) = self.rates.run([done["baseline"]])
            trials["published rates"] = trials["baseline"]
        for name, refined in done.items():
            # All are measured beside one inversion, not beside what a mask was made from.
            measured = replace(refined, inverted=record.inverted)
            (done[name],) = self.measure.run(self.edit.run([measured]))
        if reasons := [r.failure.message for r in done.values() if r.failure is not None]:
            return "; ".join(reasons)

        curves = {name: equal_identity.curves(r.metrics) for name, r in done.items()}
        rows = {}
        for name, refined in done.items():
            values = {m.metric: m.value for m in refined.metrics if m.stage == "refined"}
            row = {"image": record.image_id, **times(trials[name])}
            row |= {metric: values.get(metric) for metric in METRICS}
            other = curves["baseline" if name == "default" else "default"]
            row[EFFECT] = equal_identity.mean_effects(curves[name], other)[0]
            row["in_domain"] = float(some(refined.mask).mean())
            # Kept, so that other methods can be compared with these at equal identity later.
            row["smile_curves"] = {sign: asdict(curve) for sign, curve in curves[name].items()}
            self.images.setdefault(name, []).append(row)
            rows[name] = row
        self.pairs.append(pair(record.image_id, rows))
        return ""


def compare(
    generator: str,
    photographs: Photographs,
    batches: Sequence[int] = (1,),
    published: bool = False,
) -> dict[str, Any]:
    """Default against baseline on photographs, one after the other and in turn."""
    config = configured(generator)
    described = datasets.find(photographs.dataset)
    context = context_of(config, photographs.aligned or described.aligned)
    records = list(photographs.embedded(config, context))
    if not records:
        raise click.ClickException(f"{photographs.dataset}: no photograph could be embedded")
    peaks = {name: memory(name, config.generator) for name in METHODS}
    warm_up(config, context, records[:1])
    comparison = Comparison(config, context, published)
    for index, record in enumerate(records):
        # In turn also in who is first, so that a drift of the machine hits both alike.
        reason = comparison.add(record, index % 2)
        said = f"left out: {reason}"
        if not reason:
            said = f"{record.image_id}: {comparison.pairs[-1]['ratio']:.2f} times as fast"
        click.echo(said, err=True)
    if not comparison.pairs:
        raise click.ClickException("every photograph was left out")

    steps = {m.name: m.steps for m in comparison.methods} | {"published rates": PUBLISHED}
    rows = []
    for name, images in comparison.images.items():
        row = row_of(name, steps[name], images) | peaks.get(name, {})
        rows.append(row if name in METHODS else row | {"note": "time: the baseline's, same work"})
    for size in (size for size in batches if size > 1):
        batch = [replace(records[i % len(records)], image_id=f"{i}") for i in range(size)]
        warm_up(config, context, batch)
        rows.append(batched(comparison.methods[0], batch))
    gain = rows[0]["psnr"] - rows[1]["psnr"]
    result = summary(config, rows, comparison.pairs)
    if photographs.dataset == TUNED_ON:
        result["warnings"].append(f"schedules were chosen on {TUNED_ON}: these are not held out")
    return result | {"dataset": photographs.dataset, "psnr_gain_db": gain}


def warm_up(config: Config, context: Context, batch: Sequence[Record]) -> None:
    """A step of each phase of both methods: the first run of a shape fills caches."""
    for make in METHODS.values():
        make(config, context, Steps(1, 1, 1))(batch)


def batched(tried: Method, batch: Sequence[Record]) -> Row:
    """A method on all images at once."""
    size = len(batch)
    result = trial(tried, batch)
    failed = sum(r.failure is not None for r in result.records)
    note = f"one run, {failed} failed" if failed else "one run"
    return row_of(tried.name, tried.steps, [times(result, size)]) | {"batch": size, "note": note}


def cost_alone(generator: str, images: int) -> dict[str, Any]:
    """Cost of both methods where weights are random: no photograph and no quality.

    On a CPU the steps are few: see `extrapolated`.
    """
    config = configured(generator)
    context = context_of(config)
    methods = [make(config, context) for make in METHODS.values()]
    full = {m.name: m.steps for m in methods}
    if context.device == "cpu":
        methods = [METHODS[name](config, context, few) for name, few in SHARE.items()]
    (record,) = synthetic(context)
    warm_up(config, context, [record])
    values: dict[str, list[Row]] = {m.name: [] for m in methods}
    pairs = []
    for index in range(images):
        for m in methods if index % 2 == 0 else methods[::-1]:
            result = trial(m, [record])
            if (failure := result.records[0].failure) is not None:
                raise click.ClickException(f"{m.name}: {failure.message}")
            wall, cpu = extrapolated(result, m.steps, full[m.name])
            row = {"image": f"{index}", "seconds": wall, "cpu_seconds": cpu}
            values[m.name].append(row)
        pairs.append(pair(f"{index}", {name: rows[-1] for name, rows in values.items()}))
    rows = []
    for m in methods:
        row = row_of(m.name, full[m.name], values[m.name]) | memory(m.name, generator)
        of = f"; from {'+'.join(map(str, m.steps))} steps" if m.steps != full[m.name] else ""
        rows.append(row | {"note": f"filled weights, cost only{of}"})
    return summary(config, rows, pairs) | {"psnr_gain_db": None}


def memory_alone(generator: str) -> dict[str, Any]:
    """Peak memory of the default refinement of one image."""
    config = configured(generator)
    row: Row = {"method": "default", "batch": 1} | memory("default", config.generator)
    return summary(config, [row], []) | {"psnr_gain_db": None}
