"""The results of a benchmark: estimates by method and column, ranks and paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dhr_batch.pipeline.bench.costs import COST, HEADINGS, clocks_of, costs_of
from dhr_batch.pipeline.bench.data import Compared, Method, method_name
from dhr_batch.pipeline.bench.matrix import reference
from dhr_batch.pipeline.bench.side_effects import columns as side_columns
from dhr_batch.pipeline.report import metrics as metric_names
from dhr_batch.pipeline.report import truth
from dhr_batch.pipeline.report.metrics import split, title
from dhr_batch.pipeline.report.page import Table
from dhr_batch.pipeline.report.truth import Figure
from dhr_batch.pipeline.stats import set_distances, strengths
from dhr_batch.pipeline.stats.bootstrap import Estimate, estimate
from dhr_batch.pipeline.stats.curves import Curve, curves_of, strengths_of
from dhr_batch.pipeline.stats.equal_effect import (
    EqualEffect,
    difference,
    effect_at_equal_cost,
    equal_effect,
)
from dhr_batch.pipeline.stats.side_effects import before
from dhr_batch.stages.measure.face_scores import effect_score, effect_unit
from dhr_batch.stages.record import START, TRUTH

# The headings of tables. Each edit has its own heading.
SUMMARY = "Beside published figures"
RECONSTRUCTION = "Reconstruction"
PARTS = "In-domain and out-of-domain"
FURTHER = "Further metrics of the reconstruction"
_MAIN = ("psnr", "ssim", "ms_ssim")
_IN_PARTS = ("psnr", "ssim")
# The change of the background by an edit. It is not ranked if the masks of the methods differ.
_BACKGROUND = "psnr_out"


@dataclass(frozen=True)
class BoardColumn:
    """A column of a table.

    Attributes:
        key: The key of the column in the results.
        title: The heading of the column.
        sheet: The heading of its table.
        better: `higher` or `lower`; "" if the column is not ranked.
    """

    key: str
    title: str
    sheet: str
    better: str = ""


@dataclass(frozen=True)
class EditBoard:
    """The results of one edit.

    Attributes:
        name: The name of the edit.
        score: The metric of its effect.
        measured: Whether all methods have this metric.
        full: The comparison at the largest effect that all methods achieve.
        shares: Comparisons at shares of this effect, for a plot.
    """

    name: str
    score: str
    measured: bool
    full: EqualEffect
    shares: Mapping[float, EqualEffect]


@dataclass(frozen=True)
class Board:
    """The results of one dataset.

    Attributes:
        compared: The methods and the images.
        columns: The columns of all tables.
        cells: The estimates by method and column.
        values: The numbers by method, column and image.
        differences: The estimated paired differences to the reference method, by method and
            column.
        against: The reference method of each method.
        edits: The results of the edits.
        summary: The columns of the table in which published figures stand below the methods; empty
            for no such table. They are also columns of other tables.
    """

    compared: Compared
    columns: Sequence[BoardColumn]
    cells: Mapping[str, Mapping[str, Estimate]]
    values: Mapping[str, Mapping[str, Mapping[str, float]]]
    differences: Mapping[str, Mapping[str, Estimate]]
    against: Mapping[str, str]
    edits: Sequence[EditBoard] = field(default_factory=tuple)
    summary: Sequence[BoardColumn] = ()

    @cached_property
    def truths(self) -> list[tuple[str, Figure]]:
        """The methods compared with the ground truth, on all images that have one."""
        return truth.compared({m.name: m.metrics for m in self.compared.methods})

    @cached_property
    def truth(self) -> Table | None:
        """`truths` as a table."""
        return truth.table(self.truths)

    @property
    def compared_edits(self) -> list[EditBoard]:
        """The edits that have an equal effect on at least one image."""
        return [edited for edited in self.edits if edited.full.matches]

    @property
    def sheets(self) -> dict[str, list[BoardColumn]]:
        """The columns of each table, the most important table first."""
        first = [RECONSTRUCTION, PARTS]
        between = [c.sheet for c in self.columns if c.sheet not in (*first, COST, FURTHER)]
        order = dict.fromkeys([*first, *between, COST, FURTHER])
        found = {sheet: [c for c in self.columns if c.sheet == sheet] for sheet in order}
        found = {SUMMARY: [*self.summary], **found}
        return {sheet: columns for sheet, columns in found.items() if columns}

    def lacks(self, column: BoardColumn) -> Mapping[str, str]:
        """How to get the missing models of a column, by their names; empty if it has values.

        A cost of an edit is measured by the same models as that metric.
        """
        if any(column.key in own for own in self.cells.values()):
            return {}
        return self.compared.lacks.get(column.key.rpartition("@")[2], {})

    @property
    def compared_columns(self) -> list[BoardColumn]:
        """The columns with paired differences: ranked ones, and parts if the masks differ."""
        keys = {key for own in self.differences.values() for key in own}
        parts = () if self.compared.same_masks else (PARTS,)
        return [
            c
            for c in self.columns
            if c.key in keys and (c.sheet in parts or (c.better and c.sheet != FURTHER))
        ]


def board(compared: Compared, compare_to: str, summary: Sequence[str] = ()) -> Board:
    """Compute the results of one dataset.

    Args:
        compared: The methods and the images.
        compare_to: The reference of paired differences; see `Matrix`.
        summary: The keys of the columns of the table with published figures.
    """
    values: dict[str, dict[str, dict[str, float]]] = {m.name: {} for m in compared.methods}
    columns = [*_reconstruction(compared, values)]
    edits = [*_edits(compared, values, columns)]
    cells = {
        method: {key: estimate(list(own.values())) for key, own in found.items()}
        for method, found in values.items()
    }
    for edited in edits:
        for name, own in cells.items() if edited.full.matches else ():
            own[f"{edited.name}@effect"] = edited.full.effect()
            own[f"{edited.name}@reach"] = edited.full.reach(name)
            own[f"{edited.name}@strength"] = edited.full.strength(name)
    methods = {method.name: method for method in compared.methods}
    against = {
        name: other
        for name, m in methods.items()
        if (other := method_name(*reference(compare_to, m.embedder))) in methods and other != name
    }
    for name, method in methods.items():
        cells[name] |= _set_distances(compared, method) | costs_of(method)
        cells[name] |= clocks_of(method, methods.get(against.get(name, "")))
    columns += _further(cells)
    columns += _lacking(compared, columns)
    differences = {
        name: {
            key: difference(own, values[other][key])
            for key, own in values[name].items()
            if key in values[other]
        }
        for name, other in against.items()
    }
    known = {c.key: c for c in columns}
    chosen = [known.get(key) or _unknown(key) for key in summary]
    return Board(compared, columns, cells, values, differences, against, edits, chosen)


def _unknown(key: str) -> BoardColumn:
    """Return a column of the summary that no method has."""
    metric = key.rpartition("@")[2]
    heading, _ = HEADINGS.get(metric) or (title(metric), "")
    return BoardColumn(key, heading, SUMMARY)


def _lacking(compared: Compared, columns: Sequence[BoardColumn]) -> Iterator[BoardColumn]:
    """Yield columns for the metrics that no method has because models are missing."""
    known = {column.key for column in columns}
    for key in compared.lacks:
        if key not in known:
            sheet = RECONSTRUCTION if key == "fid" or key.startswith("frechet_") else _sheet(key)
            yield BoardColumn(key, title(key), sheet, metric_names.better(key))


def _reconstruction(
    compared: Compared, values: Mapping[str, dict[str, dict[str, float]]]
) -> Iterator[BoardColumn]:
    """Add the metrics to `values` and yield their columns.

    The images of a column are those that every method with this metric has.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method in compared.methods:
        rows = compared.metrics(method)
        rows = rows[(rows["stage"] == "refined") & np.isfinite(rows["value"])]
        for metric, group in rows.groupby("metric", observed=True):
            if not str(metric).startswith(("score_", START)):
                own = dict(zip(group["image_id"], group["value"], strict=True))
                found.setdefault(str(metric), {})[method.name] = own
        for metric, own in method.shares.items():
            if own:
                found.setdefault(metric, {})[method.name] = own
    for metric in sorted(found, key=metric_names.metric_key):
        by_method = found[metric]
        shared = [i for i in compared.counted if all(i in own for own in by_method.values())]
        for name, own in by_method.items():
            values[name][metric] = {i: own[i] for i in shared}
        ranked = compared.same_masks or not split(metric)[2]
        better = metric_names.better(metric) if ranked else ""
        yield BoardColumn(metric, title(metric), _sheet(metric), better)


def _sheet(metric: str) -> str:
    base, size, part = split(metric)
    if size or metric.startswith(TRUTH):
        return FURTHER
    perceptual = "lpips" in base
    if base.startswith("in_domain"):
        return PARTS
    if part:
        return PARTS if base in _IN_PARTS or perceptual else FURTHER
    main = base in _MAIN or perceptual or base.startswith("identity_")
    return RECONSTRUCTION if main else FURTHER


def _edits(
    compared: Compared,
    values: Mapping[str, dict[str, dict[str, float]]],
    columns: list[BoardColumn],
) -> Iterator[EditBoard]:
    """Add the costs and effects of edits to `values` and `columns`, and yield the edits."""
    metrics = {m.name: compared.metrics(m) for m in compared.methods}
    names: dict[str, None] = {}
    kinds: dict[str, None] = {}
    # The effect of an edit needs a metric that all methods have.
    shared: set[str] | None = None
    for frame in metrics.values():
        own_kinds = list(map(str, frame["metric"].unique()))
        names |= dict.fromkeys(strengths_of(frame))
        kinds |= dict.fromkeys(own_kinds)
        shared = set(own_kinds) if shared is None else shared & set(own_kinds)
    costs = [c for c in strengths.costs_of(kinds) if not c.startswith("change_")]
    sources: dict[str, dict[str, float]] = {}
    for frame in metrics.values():
        sources |= before(frame)
    kept = [*costs, *sources]
    for name in names:
        score = effect_score(name, shared or ())
        curves = {m: curves_of(frame, name, kept, score) for m, frame in metrics.items()}
        full = equal_effect(curves)
        columns += _at_equal_identity(name, curves, costs, values, effect_unit(score))
        measured = score in (shared or ())
        if not full.matches:
            yield EditBoard(name, score, measured, full, {})
            continue
        sheet, unit = f"Edit {name} at equal effect", effect_unit(score)
        columns.append(BoardColumn(f"{name}@effect", f"effect{unit}", sheet))
        columns.append(BoardColumn(f"{name}@reach", f"largest effect{unit}", sheet))
        columns.append(BoardColumn(f"{name}@strength", "strength needed", sheet))
        for cost in costs:
            key = f"{name}@{cost}"
            for method, own in full.costs(cost).items():
                values[method][key] = own
            ranked = compared.same_masks or cost != _BACKGROUND
            better = metric_names.better(cost) if ranked else ""
            columns.append(BoardColumn(key, title(cost), sheet, better))
        for key, heading, found in side_columns(name, full, sources):
            for method, own in found.items():
                values[method][key] = own
            columns.append(BoardColumn(key, heading, f"Edit {name}: side effects at equal effect"))
        shares = {share: equal_effect(curves, share) for share in (0.25, 0.5, 0.75)}
        yield EditBoard(name, score, measured, full, shares | {1.0: full})


def _at_equal_identity(
    edit: str,
    curves: Mapping[str, Mapping[str, Curve]],
    costs: Sequence[str],
    values: Mapping[str, dict[str, dict[str, float]]],
    unit: str,
) -> Iterator[BoardColumn]:
    """Add the effects at equal identity to `values`, and yield a column for each network."""
    for cost in [c for c in costs if c.startswith("identity_") and c.endswith("_distance")]:
        found = effect_at_equal_cost(curves, cost)
        if any(found.values()):
            key = f"{edit}@equal_{cost}"
            for method, own in found.items():
                values[method][key] = own
            heading = f"effect{unit} at equal {title(cost)}"
            yield BoardColumn(key, heading, f"Edit {edit} at equal identity", "higher")


def _set_distances(compared: Compared, method: Method) -> dict[str, Estimate]:
    """Return the distances between sets of the first seed. They have no intervals."""
    run = method.runs[0]
    if not run.data.distances:
        return {}
    left_out = set(run.data.image_ids) - set(compared.counted)
    return {
        d.metric: Estimate(d.value, math.nan, math.nan, d.n)
        for d in set_distances.distances(run.parts, run.data.plan.settings.generator, left_out)
        if d.stage == "refined"
    }


def _further(cells: Mapping[str, Mapping[str, Estimate]]) -> list[BoardColumn]:
    """Return the columns of distances between sets and of costs, which have no values per image."""
    keys = dict.fromkeys(key for own in cells.values() for key in own)
    sets = [key for key in keys if key in ("fid", "kid") or key.startswith("frechet_")]
    found = [BoardColumn(key, title(key), RECONSTRUCTION, "lower") for key in sets]
    return found + [BoardColumn(key, *HEADINGS[key]) for key in HEADINGS if key in keys]
