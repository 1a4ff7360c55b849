"""The results of a benchmark as LaTeX, for `booktabs`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dhr_batch.pipeline.bench.board import SUMMARY, Board
from dhr_batch.pipeline.bench.text import (
    INTERVALS,
    REFERENCES,
    head,
    heading,
    published,
    reference_rows,
    rows_of,
    sheets,
    texts,
)
from dhr_batch.pipeline.printable import printable
from dhr_batch.pipeline.report.page import Shown, plain
from dhr_batch.version import __version__


def latex(boards: Sequence[Board]) -> str:
    """Return the tables of each dataset, then published figures."""
    lines = [
        f"% dhr-batch {__version__}; needs \\usepackage{{booktabs}}",
        "% Letters of other scripts than Latin need LuaLaTeX or XeLaTeX, and a font that has them.",
        f"% {INTERVALS}",
        "",
    ]
    for board in boards:
        for sheet, columns in sheets(board):
            caption = f"{sheet}, {board.compared.title}, n = {len(board.compared.counted)}"
            found = [
                [_tex(method), *_tex_cells(cells, len(columns))]
                for method, cells in rows_of(board, columns).items()
            ]
            if sheet == SUMMARY:
                caption = f"{caption}. {REFERENCES}"
                found += (list(map(_tex, (name, *own))) for name, own in reference_rows(columns))
            heads = ["method", *(head(board, c, sheet) for c in columns)]
            lines += _table(caption, "l" + "r" * len(columns), heads, found)
        if (truth := board.truth) is not None:
            rows = ([_tex(plain(cell)) for cell in row] for row in truth.rows)
            lines += _table(
                f"{truth.title}, {board.compared.title}",
                "".join("r" if column.number else "l" for column in truth.columns),
                [column.title for column in truth.columns],
                rows,
            )
    lines.append(
        "% Published figures, for orientation only: they are not ranked, as protocols differ."
    )
    for table in published():
        lines += _table(
            f"Published: {table.source}. {table.protocol} {table.differs}",
            "l" * len(table.columns),
            [heading(c) for c in table.columns],
            (map(_tex, row) for row in texts(table)),
        )
    return "\n".join(lines)


def _table(
    caption: str, alignment: str, heads: Sequence[str], rows: Iterable[Iterable[str]]
) -> list[str]:
    """Return a floating table.

    Args:
        caption: The caption, as plain text.
        alignment: The alignments of the columns, such as `lrr`.
        heads: The headings of the columns, as plain text.
        rows: The cells, as LaTeX.
    """
    return [
        r"\begin{table}",
        rf"\caption{{{_tex(caption)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(map(_tex, heads)) + r" \\",
        r"\midrule",
        *map(_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]


def _row(cells: Iterable[str]) -> str:
    line = " & ".join(cells)
    # Behind the end of a row, `[` and `*` would be options of it.
    return ("{}" if line.startswith(("[", "*")) else "") + line + r" \\"


_TEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    "°": r"$^\circ$",
    "é": r"\'e",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in printable(" ".join(text.split())))


def _tex_cells(cells: Sequence[Shown] | str, count: int) -> list[str]:
    """Return the cells of a method; what it needs is one cell over all columns."""
    if isinstance(cells, str):
        return [rf"\multicolumn{{{count}}}{{l}}{{{_tex(cells)}}}"]
    return [_tex_mark(cell) for cell in cells]


def _tex_mark(cell: Shown) -> str:
    value, _, rest = cell.text.partition(" ")
    command = {"best": "textbf", "second": "underline"}.get(cell.mark)
    marked = f"\\{command}{{{_tex(value)}}}" if command else _tex(value)
    return f"{marked} {{\\scriptsize {_tex(rest)}}}" if rest else marked
