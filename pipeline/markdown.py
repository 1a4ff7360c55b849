"""Tables in Markdown documents: reports, benchmarks and cards."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def escaped(text: object) -> str:
    """A text in which Markdown and HTML mean nothing, on one line."""
    plain = html.escape(str(text), quote=False).replace("\\", "\\\\").replace("|", "\\|")
    return plain.replace("\n", " ").replace("*", "\\*").replace("`", "\\`")


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, and an empty line after it. Cells are Markdown already.

    >>> table_lines(["stage", "PSNR"], [["refined", "**24.10**"]])
    ['| stage | PSNR |', '|---|---|', '| refined | **24.10** |', '']
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:], ""]
