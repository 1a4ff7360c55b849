"""What `refine_speed` measures and prints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
import numpy as np

from dhr_batch.benchmarks import equal_identity, machine
from dhr_batch.benchmarks.refine_methods import (
    METHODS,
    PUBLISHED,
    Method,
    Steps,
    Trial,
    configured,
    context_of,
    extrapolated,
    memory,
    published_rates,
    stage_of,
    synthetic,
    trial,
)
from dhr_batch.pipeline import datasets
from dhr_batch.pipeline.config import Config
from dhr_batch.pipeline.worker import read
from dhr_batch.stages import registry
from dhr_batch.stages.base import Context, Record, some

Row = dict[str, Any]

METRICS = ("psnr", "psnr_in", "psnr_out", "st_lpips_alex", "identity_dlib_distance")
EFFECT = "smile_at_equal_identity"
ENOUGH = 5
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


class Quality:
    """Metrics and smile edits of refined records, by the stages of the settings."""

    def __init__(self, config: Config, context: Context) -> None:
        edit = {"direction": "smile", "strengths": [-2, -1, 1, 2]}
        self.edit = stage_of("edit", config.edit | {"edits": [edit]}, context)
        self.measure = stage_of("measure", config.measure, context)

    def __call__(self, record: Record) -> tuple[Row, dict[int, equal_identity.Curve]]:
        (done,) = self.measure.run(self.edit.run([record]))
        values = {m.metric: m.value for m in done.metrics if m.stage == "refined"}
        row = {name: values.get(name) for name in METRICS}
        row["in_domain"] = float(some(record.mask).mean())
        return row, equal_identity.curves(done.metrics)


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
    methods = [make(config, context) for make in METHODS.values()]
    quality = Quality(config, context)
    rates = published_rates(config, context) if published else None
    for make in METHODS.values():
        # Outside the clock: the first run of each shape fills caches.
        make(config, context, Steps(1, 1, 1))(records[:1])

    images: dict[str, list[Row]] = {m.name: [] for m in methods}
    if rates:
        images["published rates"] = []
    pairs: list[Row] = []
    for index, record in enumerate(records):
        # In turn also in who is first, so that a drift of the machine hits both alike.
        order = methods if index % 2 == 0 else methods[::-1]
        trials = {m.name: trial(m, [record]) for m in order}
        failed = [t.records[0].failure for t in trials.values()]
        if reasons := [f.message for f in failed if f is not None]:
            click.echo(f"left out: {'; '.join(reasons)}", err=True)
            continue
        done = {name: t.records[0] for name, t in trials.items()}
        if rates:
            (done["published rates"],) = rates.run([done["baseline"]])
            # The baseline takes as long: it does the same work.
            trials["published rates"] = trials["baseline"]
        rows, curves = {}, {}
        for name, refined in done.items():
            # All are compared with one inversion, not with what a mask was made from.
            values, curves[name] = quality(replace(refined, inverted=record.inverted))
            rows[name] = {"image": record.image_id, **_times(trials[name]), **values}
        for name in rows:
            other = "baseline" if name == "default" else "default"
            rows[name][EFFECT] = equal_identity.mean_effects(curves[name], curves[other])[0]
            images[name].append(rows[name])
        pairs.append(_pair(record.image_id, rows))
        click.echo(f"{record.image_id}: {pairs[-1]['ratio']:.2f} times as fast", err=True)
    if not pairs:
        raise click.ClickException("every photograph was left out")

    steps = {m.name: m.steps for m in methods} | {"published rates": PUBLISHED}
    rows_ = [_row(name, steps[name], values) for name, values in images.items()]
    for row, m in zip(rows_, methods, strict=False):
        row |= memory(m.name, config.generator)
    if rates:
        rows_[2] |= {"cpu_seconds": None, "note": "the work, and so the time, of baseline"}
    rows_ += [batched(methods[0], records, size) for size in batches if size > 1]
    result = _summary(config, rows_, pairs)
    result["dataset"] = photographs.dataset
    gains = (fmean(r["psnr"] for r in images[m.name]) for m in methods)
    result["psnr_gain_db"] = next(gains) - next(gains)
    return result


def batched(tried: Method, records: Sequence[Record], size: int) -> Row:
    """A method on `size` images at once; fewer photographs are repeated."""
    batch = [replace(records[i % len(records)], image_id=f"{i}") for i in range(size)]
    result = trial(tried, batch)
    failed = sum(r.failure is not None for r in result.records)
    row = _row(tried.name, tried.steps, [_times(result, size)])
    return row | {"batch": size, "note": f"{failed} failed" if failed else ""}


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
    values: dict[str, list[Row]] = {m.name: [] for m in methods}
    pairs = []
    for index in range(images):
        for m in methods if index % 2 == 0 else methods[::-1]:
            result = trial(m, [record])
            seconds = extrapolated(result, m.steps, full[m.name])
            share = seconds / result.seconds
            cpu_seconds = share * result.cpu_seconds
            row = {"image": f"{index}", "seconds": seconds, "cpu_seconds": cpu_seconds}
            values[m.name].append(row)
        pairs.append(_pair(f"{index}", {name: rows[-1] for name, rows in values.items()}))
    rows = []
    for m in methods:
        row = _row(m.name, full[m.name], values[m.name]) | memory(m.name, generator)
        of = f"; from {'+'.join(map(str, m.steps))} steps" if m.steps != full[m.name] else ""
        rows.append(row | {"note": f"filled weights, cost only{of}"})
    return _summary(config, rows, pairs) | {"psnr_gain_db": None}


def memory_alone(generator: str) -> dict[str, Any]:
    """Peak memory of the default refinement of one image."""
    config = configured(generator)
    row: Row = {"method": "default", "batch": 1} | memory("default", config.generator)
    return _summary(config, [row], []) | {"psnr_gain_db": None}


# ---------------------------------------------------------------------- rows


def _times(result: Trial, images: int = 1) -> Row:
    return {
        "seconds": result.seconds / images,
        "cpu_seconds": result.cpu_seconds / images,
        "generator_calls": len(result.calls),
    }


def _pair(image: str, rows: dict[str, Row]) -> Row:
    default, baseline = rows["default"], rows["baseline"]
    return {
        "image": image,
        "ratio": baseline["seconds"] / default["seconds"],
        "cpu_ratio": baseline["cpu_seconds"] / default["cpu_seconds"],
    }


def _row(name: str, steps: Steps, images: list[Row]) -> Row:
    """Medians of times, means of everything else over the images that have it."""
    seconds = median(r["seconds"] for r in images)
    row: Row = {"method": name, "batch": 1, "steps": "+".join(map(str, steps))}
    row |= {"images_per_hour": 3600 / seconds, "seconds": seconds}
    row["cpu_seconds"] = median(r["cpu_seconds"] for r in images)
    for key in ("generator_calls", *METRICS, EFFECT, "in_domain"):
        known = [r[key] for r in images if r.get(key) is not None]
        row[key] = fmean(known) if known else None
    return row | {"images": images}


def _summary(config: Config, rows: list[Row], pairs: list[Row]) -> dict[str, Any]:
    warnings = []
    if pairs and len(pairs) < ENOUGH:
        warnings.append(f"{len(pairs)} pairs are few for a median: give {ENOUGH} or more")
    if config.generator == "tiny":
        warnings.append("random weights: no figure means anything")
    return {
        "speedup": median(p["ratio"] for p in pairs) if pairs else None,
        "cpu_speedup": median(p["cpu_ratio"] for p in pairs) if pairs else None,
        "generator": registry.label(config.generator),
        "perceptual": config.refine["perceptual"],
        "machine": machine.describe(),
        "warnings": warnings,
        "pairs": pairs,
        "rows": rows,
    }


COLUMNS = {
    "method": ("method", "", 1),
    "batch": ("batch", "", 1),
    "steps": ("steps", "", 1),
    "images_per_hour": ("img/h", ".1f", 1),
    "seconds": ("s", ".2f", 1),
    "cpu_seconds": ("CPU s", ".2f", 1),
    "generator_calls": ("calls", ".0f", 1),
    "peak_mb": ("peak GB", ".2f", 1000),
    "increase_mb": ("more GB", ".2f", 1000),
    "psnr": ("PSNR", ".2f", 1),
    "psnr_in": ("in", ".2f", 1),
    "psnr_out": ("out", ".2f", 1),
    "st_lpips_alex": ("ST-LPIPS", ".4f", 1),
    "identity_dlib_distance": ("identity", ".4f", 1),
    EFFECT: ("smile", ".4f", 1),
    "in_domain": ("in-domain", ".2f", 1),
    "note": ("", "", 1),
}


def text(result: dict[str, Any]) -> str:
    """The table and what it was measured on."""
    shown = [c for c in COLUMNS if any(row.get(c) is not None for row in result["rows"])]
    lines = [[COLUMNS[c][0] for c in shown]]
    for row in result["rows"]:
        lines.append([])
        for column in shown:
            _, form, unit = COLUMNS[column]
            value = row.get(column)
            shown_value = "" if column == "note" else "-"
            if value is not None:
                shown_value = format(value / unit if form else value, form)
            lines[-1].append(shown_value)
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
    out = ["  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)) for line in lines]
    if result["pairs"]:
        ratios = ", ".join(f"{p['ratio']:.2f}" for p in result["pairs"])
        out += ["", f"baseline / default, per pair: {ratios}"]
        out.append(f"median {result['speedup']:.2f}; CPU time {result['cpu_speedup']:.2f}")
    if result["psnr_gain_db"] is not None:
        out.append(f"PSNR gain {result['psnr_gain_db']:+.2f} dB")
    about = result["machine"]
    out.append(
        f"{about['device']}, {about['cores']} cores, {about['threads']} torch threads, "
        f"torch {about['torch']}; {result['generator']}, loss {result['perceptual']}"
    )
    return "\n".join([*out, *(f"warning: {w}" for w in result["warnings"])])
