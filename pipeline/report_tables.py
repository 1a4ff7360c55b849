"""Numbers of a report: the wide table, its summary, and the histograms."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.pipeline.progress import duration
from dhr_batch.pipeline.report_data import MIN_IN_DOMAIN_FACE, RunData

if TYPE_CHECKING:
    import pandas as pd

# Seconds without a finished image that count as a pause.
_PAUSE = 600.0
_AT_SIZE = re.compile(r"_(\d+)$")
STAGES = ("source", "inverted", "refined")
PARTS = ("_in", "_out")
HEADLINES = ("psnr", "ssim", "st_lpips_alex", "lpips_alex", "identity_dlib_distance")
HIGHER_IS_BETTER = ("psnr", "ssim", "cosine")
TITLES = {
    "psnr": "PSNR [dB]",
    "psnr_ganinverter": "PSNR, 10·log10(2/MSE) [dB]",
    "mse": "MSE",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "st_lpips_alex": "ST-LPIPS (AlexNet)",
    "st_lpips_vgg": "ST-LPIPS (VGG)",
    "lpips_alex": "LPIPS (AlexNet)",
    "lpips_vgg": "LPIPS (VGG)",
    "identity_dlib_distance": "Identity distance (dlib)",
    "identity_dlib_cosine": "Identity cosine (dlib)",
    "identity_arcface_cosine": "Identity cosine (ArcFace)",
    "identity_curricularface_cosine": "Identity cosine (CurricularFace)",
    "identity_facenet_cosine": "Identity cosine (FaceNet)",
    "fid": "FID",
    "kid": "KID",
    "frechet_st_alex": "Fréchet distance (ST-LPIPS AlexNet)",
}


def title(metric: str) -> str:
    """Name of a metric for readers."""
    base, size, part = split(metric)
    if base not in TITLES:
        return metric
    words = {"": "", "_in": ", in-domain", "_out": ", out-of-domain"}
    return TITLES[base] + (f" at {size} px" if size else "") + words[part]


def split(metric: str) -> tuple[str, int, str]:
    """`psnr_1024_in` -> ("psnr", 1024, "_in"); the size is 0 where the name has none."""
    part = next((p for p in PARTS if metric.endswith(p)), "")
    base = metric.removesuffix(part)
    size = _AT_SIZE.search(base)
    return (base[: size.start()], int(size[1]), part) if size else (base, 0, part)


def better(metric: str) -> str:
    """Which way a metric improves: `higher` or `lower`."""
    return "higher" if any(word in metric for word in HIGHER_IS_BETTER) else "lower"


def stage_key(stage: str) -> tuple[int, str, float]:
    """Sort key: source, inverted, refined, then edits by name and strength."""
    if stage in STAGES:
        return (STAGES.index(stage), "", 0.0)
    name, _, strength = stage.removeprefix("edit:").rpartition(":")
    try:
        return (len(STAGES), name, float(strength))
    except ValueError:
        return (len(STAGES) + 1, stage, 0.0)


def metric_key(metric: str) -> tuple[int, int, int, str]:
    """Sort key: well-known metrics first, whole image before its parts, full size last."""
    base, size, part = split(metric)
    known = list(TITLES)
    rank = known.index(base) if base in known else len(known)
    return (rank, size, len(part), metric)


def wide(data: RunData) -> pd.DataFrame:
    """One row per image and stage, one column per metric.

    in_domain_face: share of the face that is in-domain; counted: whether that is at least 40 %
    (empty where the share is not known).
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
    """Mean, median, min, max and n per stage, metric and model.

    Images with less than 40 % of their face in-domain are left out unless `everything`.
    """
    long = data.metrics
    if not everything:
        long = long[~long["image_id"].isin(data.excluded())]
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


def number(value: float | None) -> str:
    """Four significant digits at most, no exponent for everyday sizes, `–` for nothing."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def signed(strength: float) -> str:
    """Strength of an edit with its sign."""
    return f"{strength:+g}" if strength else "0"


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram in the coordinates of a 100 x 60 plot."""

    series: str
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """Counts on shared bins. ticks: low and high end of the bins; top: the highest bar."""

    bars: list[Bar]
    ticks: tuple[str, str]
    top: str


@dataclass(frozen=True)
class Card:
    """One headline of the page. means: series -> mean, the one that counts last."""

    title: str
    hint: str
    means: dict[str, str]
    histogram: Histogram


def histogram(series: Mapping[str, Sequence[float]]) -> Histogram | None:
    """Histogram of one or two series; None where there is no finite value."""
    values = {k: np.asarray(v, np.float64)[np.isfinite(v)] for k, v in series.items() if len(v)}
    values = {k: v for k, v in values.items() if len(v)}
    if not values:
        return None
    pooled = np.concatenate(list(values.values()))
    bins = int(np.clip(math.ceil(2 * math.sqrt(len(pooled))), 6, 24))
    edges = np.histogram_bin_edges(pooled, bins)
    counts = {k: np.histogram(v, edges)[0] for k, v in values.items()}
    top = int(max(c.max() for c in counts.values()))
    slot = 100 / bins
    width = (slot - 0.8) / len(counts)
    bars = [
        Bar(
            series=name,
            x=round(i * slot + 0.4 + n * width, 3),
            y=round(60 - 58 * c / top, 3),
            width=round(width, 3),
            height=round(58 * c / top, 3),
            label=f"{name}: {c} from {number(edges[i])} to {number(edges[i + 1])}",
        )
        for n, (name, count) in enumerate(counts.items())
        for i, c in enumerate(count)
        if c
    ]
    return Histogram(bars, (number(edges[0]), number(edges[-1])), str(top))


def cards(data: RunData) -> list[Card]:
    """Means and histograms of the headline metrics and of the in-domain share of faces.

    Images that do not count are left out, except in the in-domain share.
    """
    long = data.metrics
    long = long[~long["image_id"].isin(data.excluded())]
    found = []
    for metric in [m for m in HEADLINES if m in set(long["metric"])]:
        chosen = long[long["metric"] == metric]
        series = {
            stage: chosen[chosen["stage"] == stage]["value"].tolist()
            for stage in ("inverted", "refined")
        }
        models = ", ".join(dict.fromkeys(chosen["model"].dropna().astype(str)))
        found.append(_card(title(metric), f"{better(metric)} is better · {models}", series))
    shares = {"share": list(data.in_domain_face.values())}
    found.append(_card("In-domain share of the face", "1 is all of it", shares))
    found.append(throughput(data.throughput))
    return [card for card in found if card is not None]


def throughput(points: Sequence[Sequence[float]]) -> Card | None:
    """Images per second over the time of work. points: [Unix time, images finished in all].

    Pauses of more than ten minutes in which nothing was finished are left out.
    """
    times, counts = np.array([[0.0, 0.0], *points]).T[:, 1:]
    steps, done = np.diff(times), np.maximum(np.diff(counts), 0)
    steps = np.where((done == 0) & (steps > _PAUSE), 0, np.maximum(steps, 0))
    clock, total = np.append(0, steps.cumsum()), np.append(0, done.cumsum())
    if clock[-1] <= 0 or total[-1] <= 0:
        return None
    edges = np.linspace(0, clock[-1], min(24, len(points)))
    rates = np.diff(np.interp(edges, clock, total)) / np.diff(edges)
    slot, top = 100 / len(rates), rates.max()
    bars = [
        Bar(
            series="rate",
            x=round(i * slot + 0.4, 3),
            y=round(60 - 58 * rate / top, 3),
            width=round(slot - 0.8, 3),
            height=round(58 * rate / top, 3),
            label=f"{number(rate)} images/s after {duration(edges[i])}",
        )
        for i, rate in enumerate(rates)
    ]
    plot = Histogram(bars, ("0 s", duration(clock[-1])), f"{number(top)} images/s")
    means = {"rate": f"{number(total[-1] / clock[-1])} images/s"}
    return Card("Throughput", "images finished over the time of work, without pauses", means, plot)


@dataclass(frozen=True)
class FailureClass:
    """Images that failed alike. share: of the most frequent class; example: the first one's row."""

    name: str
    count: int
    share: float
    example: dict[str, str]


def failures(data: RunData) -> list[FailureClass]:
    """The classes of failure, the most frequent first."""
    counts = Counter(row["error_class"] for row in data.quarantine).most_common()
    first = {row["error_class"]: row for row in reversed(data.quarantine)}
    return [FailureClass(name, n, n / counts[0][1], first[name]) for name, n in counts]


def _card(name: str, hint: str, series: dict[str, list[float]]) -> Card | None:
    plot = histogram(series)
    if plot is None:
        return None
    means = {k: number(float(np.mean(v))) for k, v in series.items() if v}
    n = max(len(v) for v in series.values())
    return Card(name, f"mean of {n}, {hint}", means, plot)
