"""Markdown tables, for reports, benchmarks and dataset cards."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def escaped(text: object) -> str:
    r"""Escape Markdown and HTML in a text, and put it on one line.

    >>> escaped("a|b *c*\n<d>")
    'a\\|b \\*c\\* &lt;d&gt;'
    """
    plain = html.escape(str(text), quote=False).replace("\\", "\\\\").replace("|", "\\|")
    return plain.replace("\n", " ").replace("*", "\\*").replace("`", "\\`")


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table and an empty line after it.

    Args:
        heads: Titles of the columns.
        rows: One cell per column. Heads and cells are inserted as they are, as Markdown.

    >>> table_lines(["stage", "PSNR"], [["refined", "**24.10**"]])
    ['| stage | PSNR |', '|---|---|', '| refined | **24.10** |', '']
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:], ""]
