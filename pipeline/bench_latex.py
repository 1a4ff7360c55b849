"""A benchmark as LaTeX, for `booktabs`."""

from __future__ import annotations

from collections.abc import Sequence

from dhr_batch import __version__
from dhr_batch.pipeline.bench_formats import (
    INTERVALS,
    head,
    heading,
    published,
    rows_of,
    sheets,
    texts,
)
from dhr_batch.pipeline.bench_table import Board


def latex(boards: Sequence[Board]) -> str:
    """A table per dataset and sheet, then the published ones."""
    lines = [f"% dhr-batch {__version__}; needs \\usepackage{{booktabs}}", f"% {INTERVALS}", ""]
    for board in boards:
        for sheet, columns in sheets(board):
            rows = rows_of(board, columns)
            caption = f"{sheet}, {board.compared.dataset}, n = {len(board.compared.counted)}"
            lines += [
                r"\begin{table}",
                rf"\caption{{{_tex(caption)}}}",
                rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
                r"\toprule",
                " & ".join(["method", *(_tex(head(board, c)) for c in columns)]) + r" \\",
                r"\midrule",
                *(
                    " & ".join([_tex(m), *(_tex_mark(*cell) for cell in cells)]) + r" \\"
                    for m, cells in rows.items()
                ),
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
    lines.append(
        "% Published figures, for orientation only: other protocols, never ranked with these."
    )
    for found in published():
        lines += [
            r"\begin{table}",
            rf"\caption{{Published: {_tex(found.source)}. {_tex(found.protocol)} "
            rf"{_tex(found.differs)}}}",
            rf"\begin{{tabular}}{{{'l' * len(found.columns)}}}",
            r"\toprule",
            " & ".join(_tex(heading(c)) for c in found.columns) + r" \\",
            r"\midrule",
            *(" & ".join(map(_tex, row)) + r" \\" for row in texts(found)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(lines)


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
