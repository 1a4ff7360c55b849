"""Markdown tables, for reports, benchmarks and dataset cards."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from dhr_batch.pipeline.printable import printable

# A bracket makes a link only together with what follows, and an underscore inside a word, as in
# most file names, has no meaning in Markdown.
_MARKS = re.compile(r"[\\|*`~]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])")


def escaped(text: object) -> str:
    r"""Escape Markdown and HTML in a text, and put it on one line.

    >>> escaped("a|b *c*\n<d> e_f _g")
    'a\\|b \\*c\\* &lt;d&gt; e_f \\_g'
    """
    line = re.sub(r"\s*[\r\n]\s*", " ", str(text).strip())
    return _MARKS.sub(r"\\\g<0>", html.escape(printable(line), quote=False))


def table_lines(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table and an empty line after it.

    Args:
        heads: Titles of the columns.
        rows: One cell per column. Heads and cells are inserted as they are, as Markdown.

    >>> table_lines(["stage", "PSNR"], [["refined", "**24.10**"]])
    ['| stage | PSNR |', '|---|---|', '| refined | **24.10** |', '']
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:], ""]
