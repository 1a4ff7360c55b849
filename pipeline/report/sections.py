"""The sections of a report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dhr_batch.pipeline.report import plots as report_plots
from dhr_batch.pipeline.report import provenance, side_effects, speed, summaries, truth
from dhr_batch.pipeline.report.data import MIN_IN_DOMAIN_FACE, RunData
from dhr_batch.pipeline.report.metrics import (
    HEADLINES,
    STAGES,
    better,
    metric_key,
    of_truth,
    title,
)
from dhr_batch.pipeline.report.page import Cell, Column, Gallery, Page, Plot, Section, Table, shown
from dhr_batch.pipeline.report.plots import Series
from dhr_batch.pipeline.stats.strengths import by_strength, costs_of
from dhr_batch.pipeline.units import number, signed
from dhr_batch.stages.record import EDIT_STAGE

if TYPE_CHECKING:
    import pandas as pd

MAX_FAILURES = 200
_MAX_NAMED = 10
FILES = ("contact_sheet.png", "metrics.md", "metrics.csv")


def page(data: RunData, gallery: Gallery) -> Page:
    """Return the page of a run, without the pictures of the gallery."""
    excluded = len(data.excluded())
    subtitle = f"{data.counted} processed, {len(data.quarantine)} quarantined"
    if excluded:
        limit = f"{MIN_IN_DOMAIN_FACE:.0%}"
        subtitle += (
            f", {excluded} not counted in averages (less than {limit} of the face in-domain)"
        )
    warning = ""
    if data.random_weights:
        warning = (
            "random weights: the generator of this run is untrained. The pictures and numbers "
        )
        warning += "only show that the pipeline works."
    sections = (
        _images(gallery),
        _metrics(data),
        truth.section(data),
        _edits(data),
        speed.section(data),
        _failures(data),
        provenance.settings(data),
        provenance.rights(),
    )
    present = [section for section in sections if section is not None]
    return Page(data.name, subtitle, present, warning, FILES)


def _metrics(data: RunData) -> Section | None:
    long = data.metrics[~data.metrics["image_id"].isin(data.excluded())]
    long = long[long["stage"].isin(STAGES[1:])]
    long = of_truth(long, False)
    plots: list[Plot] = []
    more: list[Plot] = []
    for metric in sorted(long["metric"].unique(), key=metric_key):
        found = _distribution(metric, long[long["metric"] == metric])
        if found is not None:
            (plots if metric in HEADLINES else more).append(found)
    shares = list(data.in_domain_face.values())
    if svg := report_plots.distribution({"share": shares}, "in-domain share"):
        means = {"share": number(float(np.mean(shares)))}
        hint = f"mean of {len(shares)}, 1 is the whole face"
        plots.append(Plot("In-domain share of the face", svg, hint, means))
    summary = summaries.summary(data)
    edits = summary["stage"].astype(str).str.startswith(EDIT_STAGE)
    tables = [
        _summary("All metrics of inversion and refinement", summary[~edits]),
        _summary("All metrics of the edits", summary[edits]),
    ]
    text = []
    if excluded := data.excluded():
        names = ", ".join(excluded[:_MAX_NAMED])
        rest = f" and {len(excluded) - _MAX_NAMED} more" if len(excluded) > _MAX_NAMED else ""
        text.append(
            f"Not counted in the averages, because less than {MIN_IN_DOMAIN_FACE:.0%} of the face "
            f"is in-domain (there refinement may copy pixels): {names}{rest}."
        )
    tables = [table for table in tables if table.rows]
    if data.distances:
        text.append(f"Distances between sets of pictures: {summaries.SETS}")
        tables.append(_distances(data))
    if not (plots or more or tables):
        return None
    return Section("metrics", "Metrics", text, plots, more, tables)


def _distribution(metric: str, values: pd.DataFrame) -> Plot | None:
    series = {stage: values[values["stage"] == stage]["value"].to_numpy() for stage in STAGES[1:]}
    finite = {stage: v[np.isfinite(v)] for stage, v in series.items()}
    svg = report_plots.distribution(series, title(metric))
    if svg is None:
        return None
    makers = ", ".join(dict.fromkeys(values["model"].dropna().astype(str)))
    way = better(metric)
    hint = (
        f"mean of {max(map(len, finite.values()))}, {f'{way} is better · ' if way else ''}{makers}"
    )
    means = {stage: number(float(np.mean(v))) for stage, v in finite.items() if len(v)}
    return Plot(title(metric), svg, hint, means)


def _summary(name: str, rows: pd.DataFrame) -> Table:
    numbers = ("mean", "median", "min", "max", "n")
    heads = [Column("stage"), Column("metric"), *(Column(n, number=True) for n in numbers)]
    cells = [
        [r["stage"], title(r["metric"]), *(r[n] for n in numbers), r["model"]]
        for r in rows.to_dict("records")
    ]
    return Table(name, [*heads, Column("model")], cells, folded=True)


def _distances(data: RunData) -> Table:
    heads = [Column("stage"), Column("metric"), Column("value", number=True)]
    cells: list[list[Cell]] = [
        [d.stage, title(d.metric), d.value, d.n, d.model] for d in data.distances
    ]
    columns = [*heads, Column("n", number=True), Column("model")]
    return Table("Distances between sets of pictures", columns, cells)


def _edits(data: RunData) -> Section | None:
    metrics = sorted(m for m in data.metrics["metric"].unique() if m.startswith("identity_"))
    # Only one network is shown, because identities of different networks have different scales.
    chosen = next((m for m in metrics if m.endswith("_distance")), next(iter(metrics), None))
    tables = [t for t in (strengths(data), side_effects.table(data)) if t.rows]
    names = dict.fromkeys(name for name, _ in data.edits)
    plots = [p for name in names if chosen and (p := _identity_plot(data, name, chosen))]
    if not (chosen and plots):
        return Section("edits", "Edits", (), tables=tables) if tables else None
    what = f"{title(chosen)} to the source, {better(chosen)} is better"
    text = (
        f"The cost of an edit ({what}), plotted over its effect, the change of its own score "
        "against the source. The numbers at the points are strengths; the refined picture is at 0, "
        "or where it lies on average if strengths are targets. "
        "Faint dots are single images.",
    )
    return Section("edits", "Identity against effect", text, plots, tables=tables)


def strengths(data: RunData) -> Table:
    """Return a table of effect and costs of every edit at every strength."""
    long = data.metrics[~data.metrics["image_id"].isin(data.excluded())]
    costs = costs_of(long["metric"].unique())
    rows: list[list[Cell]] = [
        [
            row.edit,
            row.strength,
            max((e.n for e in (row.effect, *row.costs.values())), default=0),
            shown(row.effect),
            *(shown(row.costs.get(name)) for name in costs),
        ]
        for row in by_strength(long, costs)
    ]
    numbers = ("strength", "images", "effect", *map(title, costs))
    heads = [Column("edit"), *(Column(name, number=True) for name in numbers)]
    return Table("Effect and cost of every edit, with 95 % intervals over images", heads, rows)


def _identity_plot(data: RunData, edit: str, identity: str) -> Plot | None:
    table = summaries.edit_effects(data, edit, identity)
    if not (table["strength"] != 0).any():
        return None
    scored = bool(table["effect"].notna().any())
    x = "effect" if scored else "strength"
    x_title = f"change of the {edit} score" if scored else "strength"
    means = table.groupby("strength")[["effect", "identity"]].mean().reset_index()
    line = Series(
        "mean",
        means[x].tolist(),
        means["identity"].tolist(),
        [signed(s) for s in means["strength"]],
    )
    few = table.iloc[np.linspace(0, len(table) - 1, min(len(table), speed.MAX_CLOUD)).astype(int)]
    notes = [f"{i}: {signed(s)}" for i, s in zip(few["image_id"], few["strength"], strict=True)]
    cloud = Series("images", few[x].tolist(), few["identity"].tolist(), notes)
    svg = report_plots.curves([line], x_title, title(identity), [cloud])
    count = table["image_id"].nunique()
    hint = f"means of {count}" + (
        "" if scored else "; over strength, because the edit has no score"
    )
    return None if svg is None else Plot(edit, svg, hint)


def _images(gallery: Gallery) -> Section:
    if not gallery.items:
        return Section("images", "Images", ("No image was processed.",))
    text = (
        f"{gallery.about} In the mask, the tinted part is out-of-domain: the generator cannot "
        "invert it, feature modulation does.".strip(),
    )
    return Section("images", "Images", text, gallery=gallery)


def _failures(data: RunData) -> Section | None:
    if not data.quarantine:
        return None
    classes = summaries.failures(data)
    svg = report_plots.bars({c.name: c.count for c in classes}, "Failures by class")
    examples = Table(
        "Classes of failure",
        [
            Column("class"),
            Column("images", number=True),
            Column("first one", code=True),
            Column("message"),
        ],
        [[c.name, c.count, c.example["image_id"], c.example["message"]] for c in classes],
    )
    shown = data.quarantine[:MAX_FAILURES]
    name = f"All {len(shown)} failures"
    if len(shown) < len(data.quarantine):
        name = (
            f"The first {len(shown)} of {len(data.quarantine)} failures; table quarantine has all"
        )
    heads = [Column("image", code=True), Column("stage"), Column("class"), Column("message")]
    rows = [[f["image_id"], f["stage"], f["error_class"], f["message"]] for f in shown]
    plots = [Plot("Failures by class", svg)] if svg else []
    tables = [examples, Table(name, heads, rows, folded=True)]
    return Section("failures", "Failures", plots=plots, tables=tables)
