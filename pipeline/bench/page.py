"""The results of a benchmark as an HTML page: sortable tables, plots, and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dhr_batch.pipeline import units
from dhr_batch.pipeline.bench import ranking
from dhr_batch.pipeline.bench.board import FURTHER, SUMMARY, Board, EditBoard
from dhr_batch.pipeline.bench.data import FinishedRun
from dhr_batch.pipeline.bench.ranking import Ranking
from dhr_batch.pipeline.bench.run import Benchmark
from dhr_batch.pipeline.bench.text import (
    COSTS,
    INTERVALS,
    RANDOM,
    REFERENCES,
    about,
    head,
    heading,
    long_title,
    models,
    published,
    reference_rows,
    rows_of,
    runs,
)
from dhr_batch.pipeline.report import data as report_data
from dhr_batch.pipeline.report import gallery, plots, provenance
from dhr_batch.pipeline.report import metrics as metric_names
from dhr_batch.pipeline.report.metrics import title
from dhr_batch.pipeline.report.page import (
    Cell,
    Column,
    Gallery,
    GalleryItem,
    Page,
    Plot,
    Score,
    Section,
    Shown,
    Spanning,
    Table,
    shown,
)
from dhr_batch.pipeline.report.plots import Series
from dhr_batch.stages.measure.face_scores import effect_unit
from dhr_batch.stages.record import edit_stage
from dhr_batch.stages.registry import STAGES

FILES = ("benchmark.md", "benchmark.tex", "benchmark.csv", "images.csv", "benchmark.json")
_SIDE = 192
# The number of colours in the style sheet.
_MAX_LINES = 12


def page(benchmark: Benchmark, boards: Sequence[Board], failed: Mapping[str, str]) -> Page:
    """Return the page without the pictures.

    Args:
        benchmark: The benchmark.
        boards: The results of each dataset.
        failed: The reason why each failed run has no complete tables.
    """
    methods = sum(len(board.compared.methods) for board in boards)
    subtitle = f"{methods} methods on {'; '.join(b.compared.title for b in boards)}"
    sections: list[Section] = [*_ranking(boards)]
    if pictured := _pictured(boards):
        text = _shown(boards, pictured)
        sections.append(Section("images", "Images", text, gallery=_gallery(pictured)))
    for number, board in enumerate(boards):
        sections.append(_figures(board, number, benchmark.matrix.about if not number else ""))
    sections += [_provenance(boards), _published(), provenance.rights()]
    warnings = [f"{name} has failed and is left out: {why}" for name, why in failed.items()]
    if any(board.compared.random_weights for board in boards):
        warnings.insert(0, RANDOM)
    warning = " ".join(warnings)
    return Page("Benchmark", subtitle, sections, warning, FILES)


def _pictured(boards: Sequence[Board]) -> Board | None:
    """Return the first results that have pictures."""
    return next((board for board in boards if board.compared.methods), None)


def _ranking(boards: Sequence[Board]) -> Iterator[Section]:
    """Yield the section with which the page opens, if any methods can be ranked."""
    found = [(board, own) for board in boards if (own := ranking.ranking(board))]
    if found:
        tables = [_ranked(board, own) for board, own in found]
        drawn = [plot for board, _ in found if (plot := _speed(board)) is not None]
        yield Section("ranking", "Ranking", (ranking.TEXT,), drawn, lead=tables)


def _ranked(board: Board, found: Ranking) -> Table:
    columns = [*found.columns, *(c for c in board.columns if c.key == "seconds")]
    cells = rows_of(board, columns)
    rows: list[list[Cell]] = [
        [method, mean, *cells[method]] for method, mean in found.means.items()
    ]
    needed = {m: own for m, own in cells.items() if isinstance(own, str)}
    rows += [[method, Spanning(own)] for method, own in needed.items()]
    heads = (Column(head(board, c, c.sheet), number=True) for c in columns)
    name = f"{board.compared.title}: means over {len(board.compared.counted)} images"
    return Table(name, [Column("method"), Column("mean rank", number=True), *heads], rows)


def _figures(board: Board, number: int, intro: str) -> Section:
    tables = [_table(board, sheet) for sheet in board.sheets]
    if board.differences:
        tables.insert(-1, _differences(board))
    if board.truth is not None:
        tables.insert(-1, board.truth)
    plots = [p for edited in board.compared_edits for p in _curves(board, edited)]
    if (seconds := _seconds(board)) is not None:
        plots.append(seconds)
    text = [intro, *about(board), INTERVALS, COSTS, REFERENCES if board.summary else ""]
    key = f"figures{number or ''}"
    return Section(key, board.compared.title, [t for t in text if t], plots, tables=tables)


def _table(board: Board, sheet: str) -> Table:
    columns = board.sheets[sheet]
    rows: list[list[Cell]] = [
        [method, Spanning(cells)] if isinstance(cells, str) else [method, *cells]
        for method, cells in rows_of(board, columns).items()
    ]
    for name, own in reference_rows(columns) if sheet == SUMMARY else ():
        rows.append([name, *(Shown(_value(cell), cell) for cell in own)])
    heads = [Column("method"), *(Column(head(board, c, sheet), number=True) for c in columns)]
    return Table(sheet, heads, rows, folded=sheet == FURTHER)


def _differences(board: Board) -> Table:
    columns = board.compared_columns
    rows: list[list[Cell]] = [
        [f"{method} − {board.against[method]}", *(shown(own.get(c.key)) for c in columns)]
        for method, own in board.differences.items()
    ]
    heads = [Column("difference"), *(Column(long_title(c), number=True) for c in columns)]
    return Table("Paired differences, per image", heads, rows)


def _curves(board: Board, edited: EditBoard) -> Iterator[Plot]:
    """Plot the costs of an edit at shares of the common effect, for images that have all costs."""
    costs = [key.partition("@")[2] for own in board.values.values() for key in own if "@" in key]
    wanted = [c for c in dict.fromkeys(costs) if c.startswith("identity_") or c == "psnr_out"]
    # Distances and similarities have different scales: plot only one kind, as in reports of runs.
    identity = [c for c in wanted if c.endswith("_distance")] or [c for c in wanted if "ident" in c]
    axis = f"change of the {edited.name} score{effect_unit(edited.score)}"
    for cost in [*identity[:1], *(c for c in wanted if c == "psnr_out")]:
        found = {share: equal.costs(cost) for share, equal in edited.shares.items()}
        series = []
        for method in list(board.cells)[:_MAX_LINES]:
            points = [(s, own[method]) for s, own in found.items() if own.get(method)]
            x = [edited.shares[s].effect().value for s, _ in points]
            y = [float(np.mean(list(values.values()))) for _, values in points]
            series.append(Series(method, x, y))
        svg = plots.curves(series, axis, title(cost))
        better = metric_names.better(cost)
        hint = f"at equal effect, {better} is better; n = {len(edited.full.images)}"
        if svg is not None:
            means = {s.name: units.number(s.y[-1] if s.y else None) for s in series}
            yield Plot(f"{edited.name}: {title(cost)}", svg, hint, means)


def _speed(board: Board) -> Plot | None:
    points = [
        Series(m, [own["seconds"].value], [own["psnr"].value])
        for m, own in list(board.cells.items())[:_MAX_LINES]
        if "seconds" in own and "psnr" in own
    ]
    svg = plots.curves(points, "seconds per image", "PSNR [dB]")
    if svg is None:
        return None
    means = {s.name: units.number(s.y[0]) for s in points}
    hint = f"{board.compared.title}; embed, segment and refine"
    return Plot("PSNR against seconds", svg, hint, means)


def _seconds(board: Board) -> Plot | None:
    """Plot the seconds of each stage for the methods."""
    keys = {f"seconds_{stage}": stage for stage in STAGES}
    spent = {
        method: {stage: own[key].value for key, stage in keys.items() if key in own}
        for method, own in board.cells.items()
    }
    title = "Seconds per image by stage"
    svg = plots.stacked(spent, title)
    if svg is None:
        return None
    stages = dict.fromkeys(stage for own in spent.values() for stage in own)
    return Plot(title, svg, "of one worker, medians over shards", dict.fromkeys(stages, ""))


@dataclass(frozen=True)
class _Picture:
    """A column of the gallery."""

    title: str
    run: FinishedRun
    stage: str


def _columns(board: Board) -> list[_Picture]:
    """Return the columns: the source, the refined pictures and the strongest first edits."""
    methods = board.compared.methods
    found = [_Picture("source", methods[0].runs[0], "aligned")]
    found += [_Picture(m.name, m.runs[0], "refined") for m in methods]
    edits = methods[0].runs[0].data.edits
    if edits:
        name = edits[0][0]
        strength = max(s for edit, s in edits if edit == name)
        stage = edit_stage(name, strength)
        label = units.edit_title(name, strength)
        found += [_Picture(f"{m.name}, {label}", m.runs[0], stage) for m in methods]
    return found


def _shown(boards: Sequence[Board], first: Board) -> Sequence[str]:
    shown, total = len(_ids(first)), len(first.compared.counted)
    text = []
    if len(boards) > 1:
        rest = "the images of the other datasets are in the reports of their runs"
        text.append(f"Images of {first.compared.title}; {rest}.")
    if shown < total:
        text.append(f"{shown} of the {total} compared images.")
    return text


def _ids(board: Board) -> list[str]:
    most = gallery.capacity(len(_columns(board)))
    ids = list(board.compared.counted)
    step = max(1, math.ceil(len(ids) / most))
    return ids[::step]


def _gallery(board: Board) -> Gallery:
    ids = _ids(board)
    scores = []
    for column in _columns(board)[1:]:
        long = column.run.data.metrics
        rows = long[(long["stage"] == column.stage) & long["image_id"].isin(ids)]
        for metric in sorted(map(str, rows["metric"].unique()), key=metric_names.metric_key):
            own = rows[rows["metric"] == metric]
            values = dict(zip(own["image_id"], own["value"].tolist(), strict=True))
            caption = "{} dB" if metric == "psnr" and column.stage == "refined" else ""
            scores.append(
                Score(
                    column.title,
                    title(metric),
                    [values.get(i) for i in ids],
                    metric_names.better(metric),
                    caption,
                )
            )
    return Gallery("", [c.title for c in _columns(board)], [GalleryItem(i) for i in ids], scores)


def pictures(boards: Sequence[Board]) -> Iterator[list[str | None]]:
    """Yield the thumbnails of the gallery, image by image."""
    board = _pictured(boards)
    if board is None:
        return
    ids = _ids(board)
    columns = _columns(board)
    allowed = gallery.PAGE_BYTES // max(len(ids) * len(columns), 1)
    readers = {id(c.run): report_data.rows(c.run.parts, ids) for c in columns}
    for _ in ids:
        row = {run: next(rows) for run, rows in readers.items()}
        yield [
            gallery.thumbnail(row[id(column.run)], column.stage, _SIDE, allowed)
            for column in columns
        ]


def _provenance(boards: Sequence[Board]) -> Section:
    rows: list[list[Cell]] = []
    used: dict[str, str] = {}
    makers: list[list[Cell]] = []
    for board in boards:
        for method, what, name, fingerprint in runs(board):
            rows.append([board.compared.title, method, what, f"runs/{name}", fingerprint])
        used |= models(board)
        for metric, by in board.compared.made_by.items():
            makers.append([board.compared.title, title(metric), "; ".join(by)])
    heads = [Column("dataset"), Column("method"), Column("about"), Column("run", code=True)]
    tables = [
        Table("Runs", [*heads, Column("fingerprint", code=True)], rows),
        provenance.models_table(sorted(used), used),
        Table(
            "Models of each metric",
            [Column("dataset"), Column("metric"), Column("models")],
            makers,
            folded=True,
        ),
    ]
    text = (
        "A fingerprint is a digest of everything that the rows of a run depend on, except the "
        "images: settings, weights, edit directions and version. They are listed in "
        "benchmark.json. The numbers of every image are in images.csv.",
    )
    return Section("provenance", "Runs and models", text, tables=tables)


def _published() -> Section:
    tables = []
    text = [
        "Figures that others have published, for orientation only: they come from other weights, "
        "images and protocols."
    ]
    for found in published():
        text.append(f"{found.source}. {found.protocol} {found.differs}")
        columns = zip(*found.rows, strict=True)
        numeric = [all(_value(cell) is not None for cell in c if cell) for c in columns]
        rows: list[list[Cell]] = [
            [
                Shown(_value(cell), cell or "–") if n else cell
                for cell, n in zip(row, numeric, strict=True)
            ]
            for row in found.rows
        ]
        heads = [Column(heading(c), number=n) for c, n in zip(found.columns, numeric, strict=True)]
        tables.append(Table(found.source, heads, rows, folded=True))
    return Section("published", "Published figures", text, tables=tables)


def _value(cell: str | None) -> float | None:
    try:
        return float(cell or "")
    except ValueError:
        return None
