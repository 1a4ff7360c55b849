"""The results of a benchmark as Markdown and CSV, and texts that all formats share."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from pydantic import TypeAdapter

from dhr_batch.pipeline.bench import needs
from dhr_batch.pipeline.bench.board import FURTHER, SUMMARY, Board, BoardColumn
from dhr_batch.pipeline.bench.costs import COST, IN_TURN
from dhr_batch.pipeline.bench.data import EXCLUDED
from dhr_batch.pipeline.bench.ranking import marks_of
from dhr_batch.pipeline.bench.run import Benchmark
from dhr_batch.pipeline.markdown import escaped, table_lines
from dhr_batch.pipeline.printable import csv_cell
from dhr_batch.pipeline.report.metrics import title
from dhr_batch.pipeline.report.page import Shown, plain, shown
from dhr_batch.pipeline.stats.bootstrap import LEVEL
from dhr_batch.pipeline.strict import Strict
from dhr_batch.stages import yaml_files

INTERVALS = (
    f"Brackets: {LEVEL:.0%} bootstrap intervals over images (over shards for costs). "
    "Bold: best, underlined: second, by the figures as shown. Costs are not ranked, and of the "
    "effects only those at equal identity are."
)
EDITING = (
    "At equal effect: for each image and direction of an edit, the strength of each method is "
    "interpolated so that all methods change the score of the source by the same amount, which is "
    "the largest that all of them achieve. “Largest effect” is the largest change that a method "
    "achieves by itself. At equal identity: the effect, against the refined picture, of the "
    "strongest edit of each method within the largest identity distance that all methods reach."
)
COSTS = (
    "Seconds are the median over shards of one worker's time per image for embed, segment and "
    "refine, including stages whose results come from another run. Memory is the peak of a "
    "worker's process with all networks and stages."
)
TURNS = (
    "In turn: the methods compute each shard in turn, and the first method changes from shard to "
    "shard. Values are medians over shards, of the stages that were computed in turn; ratios are "
    "medians of the ratios on each shard to the reference method. In the table of costs they are "
    "those of embed, segment and refine together. Reading and writing of files are not counted."
)
REFERENCES = (
    "The last rows are published figures of the tables named at the end, for orientation: they "
    "come from other weights, images and machines, and are never ranked. MB is what an image takes "
    "so that its refined picture can be rendered again: code, mask and refinement."
)
RANDOM = "random weights: the figures say nothing about trained models."
OTHER_MASKS = (
    "The in-domain masks of these methods differ: figures of parts are of each method's own part, "
    "and are not ranked."
)


class Published(Strict):
    """A published table.

    Attributes:
        source: The publication.
        protocol: How the figures were measured.
        differs: Differences to the benchmarks of this project.
        columns: The metrics, by the names of this project if they have the same definition.
        rows: The cells in the order of the columns, with the digits as published.
    """

    source: str
    protocol: str
    differs: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | None, ...], ...]


def published() -> list[Published]:
    """Read the shipped tables, `configs/published.yaml`."""
    found = yaml_files.read(resources.files("dhr_batch.configs") / "published.yaml")
    return TypeAdapter(list[Published]).validate_python(found)


def about(board: Board) -> list[str]:
    """Return sentences about the images of the results."""
    compared = board.compared
    lines = [
        f"Means over the {len(compared.counted)} of {compared.planned} images that all "
        f"{len(compared.methods)} methods have."
    ]
    if compared.needs:
        lines.append(
            f"{len(compared.needs)} of {len(compared.rows)} methods need models that are missing. "
            "They are computed by the same command once these are there."
        )
    for column in board.columns:
        if lacking := board.lacks(column):
            lines.append(f"{column.title} {needs.text(lacking)}.")
    if compared.failed:
        names = ", ".join(f"{i} ({_reasons(why)})" for i, why in compared.failed.items())
        lines.append(f"Left out because they failed: {len(compared.failed)}: {names}.")
    if compared.excluded:
        names = ", ".join(f"{i} ({', '.join(own)})" for i, own in compared.excluded.items())
        lines.append(f"Left out with {EXCLUDED}: {len(compared.excluded)}: {names}.")
    for edited in board.edits:
        full = edited.full
        if not edited.measured:
            lines.append(f"{edited.name}: the score `{edited.score}` was not measured.")
            continue
        if not full.matches:
            none = f"0 of {full.compared} images have an effect that all methods achieve"
            lines.append(f"{edited.name}: {none}.")
            continue
        both = len(full.matches) - len(full.images)
        lines.append(
            f"{edited.name}: {len(full.images)} of {full.compared} images have an effect that all "
            f"methods achieve, {both} of them in both directions."
        )
    if board.compared_edits:
        lines.append(EDITING)
    if any("turn_seconds" in own for own in board.cells.values()):
        lines.append(TURNS)
    if not compared.same_masks:
        lines.append(OTHER_MASKS)
    return lines


def _reasons(why: Mapping[str, str]) -> str:
    reasons: dict[str, list[str]] = {}
    for method, reason in why.items():
        reasons.setdefault(reason, []).append(method)
    return "; ".join(f"{reason} in {', '.join(methods)}" for reason, methods in reasons.items())


def rows_of(board: Board, columns: Sequence[BoardColumn]) -> dict[str, list[Shown] | str]:
    """Return the cells of each method, or as one text what a method without them needs."""
    rows: dict[str, list[Shown] | str] = {}
    marked = [marks_of(board, column) for column in columns]
    for method in board.compared.rows:
        if method in board.compared.needs:
            rows[method] = needs.text(board.compared.needs[method])
            continue
        own = board.cells[method]
        rows[method] = [
            Shown(None, f"needs {', '.join(lacking)}")
            if (lacking := board.lacks(column))
            else shown(own.get(column.key), marks.get(method, ""))
            for column, marks in zip(columns, marked, strict=True)
        ]
    return rows


def reference_rows(columns: Sequence[BoardColumn]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the cells of published methods that have a figure in these columns.

    The name begins with the start of the table's `source`.
    """
    for table in published():
        names = [name for name in ("embedder", "refiner", "method") if name in table.columns]
        for row in table.rows:
            found = dict(zip(table.columns, row, strict=True))
            cells = [found.get(column.key) for column in columns]
            if any(cells):
                method = " / ".join((found[name] or "").replace("–", "none") for name in names)
                source = table.source.partition(",")[0]
                yield f"{source}: {method}", ["–" if cell is None else cell for cell in cells]


def markdown(benchmark: Benchmark, boards: Sequence[Board], failed: Mapping[str, str]) -> str:
    """Return the tables of all datasets, their runs, and published figures as Markdown."""
    lines = ["# Benchmark", "", f"{escaped(benchmark.matrix.about)} {INTERVALS}".strip(), ""]
    if any(board.compared.random_weights for board in boards):
        lines += [RANDOM, ""]
    gone = (f"{name} has failed and is left out: {why}" for name, why in failed.items())
    lines += map(escaped, gone)
    for board in boards:
        lines += [f"## {escaped(board.compared.title)}", "", *map(escaped, about(board)), ""]
        for sheet, columns in sheets(board):
            lines += [f"### {escaped(sheet)}", ""] + ([COSTS, ""] if sheet == COST else [])
            lines += [REFERENCES, ""] if sheet == SUMMARY else []
            found = [
                [escaped(method), *_md_cells(cells, len(columns))]
                for method, cells in rows_of(board, columns).items()
            ]
            if sheet == SUMMARY:
                found += ([escaped(name), *cells] for name, cells in reference_rows(columns))
            heads = (escaped(head(board, column, sheet)) for column in columns)
            lines += table_lines(["method", *heads], found)
        lines += _md_differences(board)
        if board.truth is not None:
            lines += [f"### {escaped(board.truth.title)}", ""]
            rows = ([escaped(plain(cell)) for cell in row] for row in board.truth.rows)
            lines += table_lines([escaped(column.title) for column in board.truth.columns], rows)
        lines += ["### Runs", ""]
        rows = ([escaped(cell) for cell in row] for row in runs(board))
        lines += table_lines(["method", "about", "run", "fingerprint"], rows)
        lines += ["### Models", ""]
        lines += table_lines(
            ["model", "start of sha256"], (map(escaped, m) for m in models(board).items())
        )
    lines += ["## Published figures", "", "For orientation only; not comparable without care.", ""]
    for table in published():
        lines += [f"### {table.source}", "", f"{table.protocol} {table.differs}".strip(), ""]
        lines += table_lines([heading(c) for c in table.columns], texts(table))
    return "\n".join(lines)


def sheets(board: Board) -> Iterator[tuple[str, list[BoardColumn]]]:
    """Yield the tables without that of further metrics."""
    return ((sheet, columns) for sheet, columns in board.sheets.items() if sheet != FURTHER)


def heading(column: str) -> str:
    """Return the heading of a column of a published table."""
    return "s per image" if column == "seconds" else title(column)


def texts(found: Published) -> Iterator[list[str]]:
    """Yield the rows of a published table as text."""
    for row in found.rows:
        yield ["–" if cell is None else cell for cell in row]


def head(board: Board, column: BoardColumn, sheet: str) -> str:
    """Return the heading of a column, with the number of its images if some have no value.

    Args:
        board: The results.
        column: The column.
        sheet: The heading of the table.
    """
    heading = long_title(column) if sheet == SUMMARY else column.title
    if column.sheet in (COST, *IN_TURN.values()):
        return heading
    images = {own[column.key].n for own in board.cells.values() if column.key in own}
    few = images - {0, len(board.compared.counted)}
    return heading + (f" (n = {min(few)})" if few else "")


def long_title(column: BoardColumn) -> str:
    """Return the title of a column outside of its table."""
    edit, at, _ = column.key.rpartition("@")
    return f"{edit}{at and ': '}{column.title}"


def runs(board: Board) -> Iterator[tuple[str, str, str, str]]:
    """Yield the method, its description, the name and the fingerprint of every run."""
    for method in board.compared.methods:
        for run in method.runs:
            yield method.name, run.cell.about, run.cell.name, run.fingerprint


def models(board: Board) -> dict[str, str]:
    """Return the sha256 of every model that the runs used."""
    found: dict[str, str] = {}
    for method in board.compared.methods:
        for run in method.runs:
            found |= run.models
    return dict(sorted(found.items()))


def _md_differences(board: Board) -> list[str]:
    if not board.differences:
        return []
    columns = board.compared_columns
    lines = ["### Paired differences", "", "Of each image: the method minus its reference.", ""]
    rows = (
        [escaped(f"{m} − {board.against[m]}"), *(shown(own.get(c.key)).text for c in columns)]
        for m, own in board.differences.items()
    )
    return lines + table_lines(["difference", *(escaped(long_title(c)) for c in columns)], rows)


def _md_cells(cells: Sequence[Shown] | str, count: int) -> list[str]:
    """Return the cells of a method; what it needs is in the first one."""
    if isinstance(cells, str):
        return [escaped(cells), *[""] * (count - 1)]
    return [_md_mark(cell) for cell in cells]


def _md_mark(cell: Shown) -> str:
    value, space, rest = cell.text.partition(" ")
    marked = {"best": f"**{value}**", "second": f"<u>{value}</u>"}.get(cell.mark, value)
    return f"{marked}{space}{rest}"


def csv_table(boards: Sequence[Board]) -> str:
    """Return the results as CSV: a row for each dataset, generator, method and column.

    The last columns are the runs of the method and their fingerprints, one for each seed, and how
    to get the models without which a figure is missing. A method that was not computed has a single
    row without a column.
    """
    heads = ["dataset", "embedder", "refiner", "column", "value", "low", "high", "n", "better"]
    rows: list[Sequence[Any]] = [[*heads, "mark", "run", "fingerprint", "generator", "needs"]]
    for board in boards:
        for column in board.columns:
            marked = marks_of(board, column)
            for method in board.compared.methods:
                if estimate := board.cells[method.name].get(column.key):
                    numbers = [finite(v) for v in (estimate.value, estimate.low, estimate.high)]
                    named = [board.compared.dataset, method.embedder, method.refiner, column.key]
                    pairs = ((run.cell.name, run.fingerprint) for run in method.runs)
                    origin = ["; ".join(words) for words in zip(*pairs, strict=True)]
                    tail = [estimate.n, column.better, marked.get(method.name, ""), *origin]
                    rows.append([*named, *numbers, *tail, board.compared.generator, ""])
                elif lacking := board.lacks(column):
                    named = [board.compared.dataset, method.embedder, method.refiner, column.key]
                    tail = [board.compared.generator, needs.text(lacking)]
                    rows.append([*named, *[None] * 3, 0, column.better, *[""] * 3, *tail])
        for name, missing in board.compared.needs.items():
            named = [board.compared.dataset, *name.split(" / ")]
            tail = [board.compared.generator, needs.text(missing)]
            rows.append([*named, "", *[None] * 3, 0, *[""] * 4, *tail])
    return _csv(rows)


def csv_images(boards: Sequence[Board]) -> str:
    """Return the numbers of images as CSV: a row for each dataset, method, column and image."""
    rows: list[Sequence[Any]] = [["dataset", "method", "column", "image_id", "value", "generator"]]
    for board in boards:
        dataset, generator = board.compared.dataset, board.compared.generator
        for method, columns in board.values.items():
            for column, images in columns.items():
                rows += [[dataset, method, column, i, v, generator] for i, v in images.items()]
    return _csv(rows)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(map(csv_cell, row) for row in rows)
    return buffer.getvalue()


def finite(value: float) -> float | None:
    """Return the number, or None for infinity and nan, which JSON and spreadsheets cannot store."""
    return value if math.isfinite(value) else None
