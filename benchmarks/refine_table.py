"""The rows that `refine_speed` prints and writes."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from dhr_batch.benchmarks import machine
from dhr_batch.benchmarks.refine_methods import Steps, Trial
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.stages import registry

Row = dict[str, Any]

METRICS = ("psnr", "psnr_in", "psnr_out", "st_lpips_alex", "identity_dlib_distance")
EFFECT = "smile_at_equal_identity"
ENOUGH = 5


def times(result: Trial, images: int = 1) -> Row:
    """Per image; calls of the generator are those of the whole batch."""
    return {
        "seconds": result.time.wall / images,
        "cpu_seconds": result.time.cpu / images,
        "generator_calls": len(result.calls),
    }


def pair(image: str, rows: dict[str, Row]) -> Row:
    """How many times as long the baseline took for an image. rows: by method."""
    default, baseline = rows["default"], rows["baseline"]
    return {
        "image": image,
        "ratio": baseline["seconds"] / default["seconds"],
        "cpu_ratio": baseline["cpu_seconds"] / default["cpu_seconds"],
    }


def row_of(name: str, steps: Steps, images: list[Row]) -> Row:
    """Medians of times, means of everything else over the images that have it."""
    seconds = median(r["seconds"] for r in images)
    row: Row = {"method": name, "batch": 1, "steps": "+".join(map(str, steps))}
    row |= {"images_per_hour": 3600 / seconds, "seconds": seconds}
    row["cpu_seconds"] = median(r["cpu_seconds"] for r in images)
    for key in ("generator_calls", *METRICS, EFFECT, "in_domain"):
        known = [r[key] for r in images if r.get(key) is not None]
        row[key] = fmean(known) if known else None
    return row | {"images": images}


def summary(config: Config, rows: list[Row], pairs: list[Row]) -> dict[str, Any]:
    """What the JSON file holds: medians over the pairs, the machine, and all rows."""
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
