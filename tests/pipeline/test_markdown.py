"""The tables of Markdown documents."""

from __future__ import annotations

from dhr_batch.pipeline.markdown import escaped, table_lines


def test_a_table_has_a_line_per_row_and_an_empty_one_at_its_end() -> None:
    lines = table_lines(["stage", "n"], iter([["refined", "5"], ["inverted", "4"]]))
    assert lines == ["| stage | n |", "|---|---|", "| refined | 5 |", "| inverted | 4 |", ""]
    assert table_lines(["stage"], []) == ["| stage |", "|---|", ""]


def test_an_escaped_text_is_one_cell_without_markup() -> None:
    assert escaped("a|b\n<i>*c*</i> `d` \\") == "a\\|b &lt;i&gt;\\*c\\*&lt;/i&gt; \\`d\\` \\\\"
    assert escaped(5) == "5"
