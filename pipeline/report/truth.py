"""Comparison of a run on synthetic pictures with their ground truth, by occluded share.

All pictures count, even if little of the face is in-domain, because the effect of occluders is what
is measured here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.pipeline.datasets.synthetic import SHARES, TWIN
from dhr_batch.pipeline.markdown import escaped, table_lines
from dhr_batch.pipeline.report import plots
from dhr_batch.pipeline.report.data import RunData
from dhr_batch.pipeline.report.metrics import STAGES, better, of_truth, title
from dhr_batch.pipeline.report.page import Cell, Column, Plot, Section, Table
from dhr_batch.pipeline.report.plots import Series
from dhr_batch.pipeline.stats.bootstrap import estimate
from dhr_batch.pipeline.units import number
from dhr_batch.stages.record import TRUTH

if TYPE_CHECKING:
    import pandas as pd


# Limits of the bins of the occluded share. The last bin includes its upper limit.
BINS = (SHARES[0], 0.1, 0.2, 0.3, SHARES[1])
_SHARE = TRUTH + "occluded"
_ORDER = ("mask_iou", "mask_precision", "mask_recall", "mask_false", "latent_w", "latent_w_plus")
CLEAN = "same without its occluder"
_TEXT = (
    "These pictures are faces of a generator under occluders, so the truth is known. The mask is "
    "compared with the occluder within the face of the clean picture. The code is compared with "
    "the one that generated the face; 1 is the distance of the mean face. Reconstructions are "
    "compared with the clean picture where the face is not covered. Intervals are 95 %, by "
    "bootstrap over pictures; all pictures count."
)


@dataclass(frozen=True)
class Figure:
    """The mean of a metric over pictures, with its 95 % interval.

    Attributes:
        picture: `occluded`, `CLEAN`, or `difference`: with the occluder minus without it.
        stage: The stage.
        metric: The metric.
        mean: The mean.
        low: Lower end of the interval; None for a single picture.
        high: Upper end of the interval; None for a single picture.
        n: Number of pictures.
        by_share: The mean in each of the `BINS`; None for an empty bin.
    """

    picture: str
    stage: str
    metric: str
    mean: float
    low: float | None
    high: float | None
    n: int
    by_share: tuple[float | None, ...]


def figures(metrics: pd.DataFrame) -> list[Figure]:
    """Return all figures of a metrics table; empty if no picture has a ground truth."""
    tables = _wide(metrics)
    if tables is None:
        return []
    shares, occluded, clean = tables
    found = list(_figures("occluded", occluded, shares))
    if len(clean):
        found += _figures(CLEAN, clean, shares)
        both = clean.index.intersection(occluded.index)
        found += _figures("difference", occluded.loc[both] - clean.loc[both], shares)
    return found


def _wide(metrics: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame, pd.DataFrame] | None:
    """Return occluded shares, metrics of occluded pictures, and metrics of their clean twins.

    All three are indexed by the ids of the occluded pictures. Columns are pairs of stage and
    metric. The result is None if no picture has a ground truth.
    """
    long = of_truth(metrics).astype({"stage": str, "metric": str, "image_id": str})
    long = long[np.isfinite(long["value"])]
    if long.empty:
        return None
    table = long.pivot_table(index="image_id", columns=["stage", "metric"], values="value")
    share = table.pop(("inverted", _SHARE))
    twins = table[share == 0]
    occluded = table[share > 0].dropna(axis=1, how="all")
    twins = twins.rename(index=lambda name: name.replace(TWIN, ""))
    return share[share > 0], occluded, twins.dropna(axis=1, how="all")


def _key(column: tuple[str, str]) -> tuple[int, str, int]:
    stage, metric = column
    name = metric.removeprefix(TRUTH)
    rank = _ORDER.index(name) if name in _ORDER else len(_ORDER)
    return (rank, metric, STAGES.index(stage))


def _figures(picture: str, table: pd.DataFrame, shares: pd.Series) -> Iterator[Figure]:
    for stage, metric in sorted(table.columns, key=_key):
        values = table[stage, metric].dropna()
        if len(values):
            mean = estimate(values)
            bins = _bins(shares.reindex(values.index))
            means = tuple(
                float(values[bins == n].mean()) if (bins == n).any() else None
                for n in range(len(BINS) - 1)
            )
            low, high = (None, None) if mean.n < 2 else (mean.low, mean.high)
            yield Figure(picture, stage, metric, mean.value, low, high, mean.n, means)


def _bins(shares: pd.Series) -> np.ndarray:
    """Return the bin of each share."""
    # Shares are whole pixels, so one may lie slightly outside of the limits.
    return np.clip(np.digitize(shares, BINS[1:-1]), 0, len(BINS) - 2)


def bin_names() -> list[str]:
    """Return the names of the bins, such as `5-10 %`."""
    return [f"{100 * a:.0f}-{100 * b:.0f} %" for a, b in pairwise(BINS)]


def section(data: RunData) -> Section | None:
    """Return the section of a report, or None if no picture has a ground truth."""
    found = figures(data.metrics)
    if not found:
        return None
    table = _table(
        "Means, and means by occluded share of the face",
        ("picture", "stage", "metric"),
        [((f.picture, f.stage, title(f.metric)), f) for f in found],
    )
    return Section("truth", "Ground truth", (_TEXT,), list(_plots(data.metrics)), tables=[table])


def compared(methods: Mapping[str, pd.DataFrame]) -> list[tuple[str, Figure]]:
    """Return the figures of refined pictures for several methods, sorted by metric.

    A metric is averaged over the pictures for which all methods that measure it have a value.

    Args:
        methods: Metrics tables by the name of the method.

    Returns:
        Pairs of method and figure; empty if no picture has a ground truth.
    """
    found = [
        (name, figure)
        for name, metrics in _shared(methods).items()
        for figure in figures(metrics)
        if figure.stage == "refined"
    ]
    order = list(dict.fromkeys((f.metric, f.picture) for _, f in found))
    return sorted(found, key=lambda pair: order.index((pair[1].metric, pair[1].picture)))


def table(found: Sequence[tuple[str, Figure]]) -> Table | None:
    """Return the result of `compared` as a table, or None if it is empty."""
    if not found:
        return None
    return _table(
        "Against the ground truth, by occluded share of the face",
        ("metric", "picture", "method"),
        [((title(f.metric), f.picture, name), f) for name, f in found],
    )


def _shared(methods: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return rows that compare with the ground truth, for pictures that all methods have.

    Only methods that measure the metric of a row count.
    """
    keys = {}
    for name, metrics in methods.items():
        rows = of_truth(metrics)
        rows = rows[np.isfinite(rows["value"])].astype({"stage": str, "metric": str})
        keys[name] = rows.set_index(["stage", "metric", "image_id"])
    kinds = {name: set(rows.index.droplevel("image_id")) for name, rows in keys.items()}
    found = {}
    for name, rows in keys.items():
        for other, theirs in keys.items():
            lacking = ~rows.index.isin(theirs.index)
            rows = rows[~(lacking & rows.index.droplevel("image_id").isin(kinds[other]))]
        found[name] = rows.reset_index()
    return found


def _table(
    headline: str, heads: Sequence[str], found: Sequence[tuple[Sequence[str], Figure]]
) -> Table:
    """Return a table. found: for each row, the cells under `heads`, and the figure."""
    numbers = ("mean", "from", "to", *bin_names(), "n")
    columns = [*map(Column, heads), *(Column(name, number=True) for name in numbers)]
    rows: list[list[Cell]] = [
        [*texts, f.mean, f.low, f.high, *f.by_share, f.n] for texts, f in found
    ]
    return Table(headline, columns, rows)


def _plots(metrics: pd.DataFrame) -> Iterator[Plot]:
    tables = _wide(metrics)
    assert tables is not None
    shares, occluded, clean = tables
    for metric in dict.fromkeys(name for _, name in sorted(occluded.columns, key=_key)):
        stages = [s for s in STAGES if (s, metric) in occluded.columns]
        lines = [_line(stage, occluded[stage, metric], shares) for stage in stages]
        if (stages[-1], metric) in clean.columns:
            lines.append(_line(CLEAN, clean[stages[-1], metric], shares))
        values = occluded[stages[-1], metric].dropna()
        notes = [f"{name}: {number(value)}" for name, value in values.items()]
        cloud = Series("pictures", shares[values.index].tolist(), values.tolist(), notes)
        svg = plots.curves(lines, "occluded share of the face", title(metric), [cloud])
        if svg is not None:
            means = {s: number(float(occluded[s, metric].mean())) for s in stages}
            way = better(metric)
            yield Plot(title(metric), svg, f"means by share, {way} is better", means)


def _line(name: str, values: pd.Series, shares: pd.Series) -> Series:
    """Return the mean of each bin over the mean share of the bin."""
    values = values.dropna()
    shares = shares.reindex(values.index)
    bins = _bins(shares)
    filled = [n for n in range(len(BINS) - 1) if (bins == n).any()]
    x = [float(shares[bins == n].mean()) for n in filled]
    return Series(name, x, [float(values[bins == n].mean()) for n in filled])


def markdown(metrics: pd.DataFrame) -> list[str]:
    """Return the figures as lines of a Markdown table; empty if there is no ground truth."""
    found = figures(metrics)
    if not found:
        return []
    heads = ["picture", "stage", "metric", "mean (95 %)", *bin_names(), "n"]
    rows = []
    for f in found:
        mean = f"{number(f.mean)} ({number(f.low)} to {number(f.high)})"
        shares = [number(value) for value in f.by_share]
        rows.append([f.picture, escaped(f.stage), title(f.metric), mean, *shares, str(f.n)])
    return ["## Ground truth", "", _TEXT, "", *table_lines(heads, rows)]
