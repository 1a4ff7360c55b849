"""The results of a benchmark as LaTeX, for `booktabs`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dhr_batch.pipeline.bench.board import Board
from dhr_batch.pipeline.bench.text import (
    INTERVALS,
    head,
    heading,
    plain,
    published,
    rows_of,
    sheets,
    texts,
)
from dhr_batch.version import __version__


def latex(boards: Sequence[Board]) -> str:
    """Return the tables of each dataset, then published figures."""
    lines = [f"% dhr-batch {__version__}; needs \\usepackage{{booktabs}}", f"% {INTERVALS}", ""]
    for board in boards:
        for sheet, columns in sheets(board):
            caption = f"{sheet}, {board.compared.dataset}, n = {len(board.compared.counted)}"
            rows = (
                [_tex(method), *(_tex_mark(*cell) for cell in cells)]
                for method, cells in rows_of(board, columns).items()
            )
            heads = ["method", *(head(board, c) for c in columns)]
            lines += _table(caption, "l" + "r" * len(columns), heads, rows)
        if (truth := board.truth) is not None:
            rows = ([_tex(plain(cell)) for cell in row] for row in truth.rows)
            lines += _table(
                f"{truth.title}, {board.compared.dataset}",
                "".join("r" if column.number else "l" for column in truth.columns),
                [column.title for column in truth.columns],
                rows,
            )
    lines.append(
        "% Published figures, for orientation only: they are not ranked, as protocols differ."
    )
    for found in published():
        lines += _table(
            f"Published: {found.source}. {found.protocol} {found.differs}",
            "l" * len(found.columns),
            [heading(c) for c in found.columns],
            (map(_tex, row) for row in texts(found)),
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
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]


_TEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "·": r"$\cdot$",
    "∞": r"$\infty$",
    "°": r"$^\circ$",
    "é": r"\'e",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def _tex_mark(text: str, mark: str) -> str:
    value, _, rest = text.partition(" ")
    command = {"best": "textbf", "second": "underline"}.get(mark)
    marked = f"\\{command}{{{_tex(value)}}}" if command else _tex(value)
    return f"{marked} {{\\scriptsize {_tex(rest)}}}" if rest else marked
