"""Render a report page: sections of plots and tables, and one gallery of pictures.

This module is independent of runs. It turns a `Page` into one self-contained HTML file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from dhr_batch.pipeline.printable import printable
from dhr_batch.pipeline.stats.bootstrap import Estimate
from dhr_batch.pipeline.units import number
from dhr_batch.version import __version__


@dataclass(frozen=True)
class Shown:
    """A cell of a table that is shown as text and sorted by a value.

    Attributes:
        value: The value to sort by.
        text: The text to show.
        mark: `best`, `second` or empty.
    """

    value: float | None
    text: str
    mark: str = ""


@dataclass(frozen=True)
class Spanning:
    """The second and last cell of a row, which spans all columns from there. It has no value.

    Attributes:
        spanning: The text to show.
    """

    spanning: str


Cell = str | int | float | Shown | Spanning | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: The heading.
        number: Whether the column is aligned right.
        code: Whether the text is monospaced and may be broken anywhere.
    """

    title: str
    number: bool = False
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table that readers can sort. Floats are shown with up to four significant digits.

    Attributes:
        folded: Whether the table is hidden until the reader opens it.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot with a headline.

    Attributes:
        title: The headline.
        svg: The plot, from `plots`.
        hint: A remark below the headline.
        means: The formatted mean of each series, or an empty text if only its colour is explained.
            The last mean is emphasized.
    """

    title: str
    svg: str
    hint: str = ""
    means: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One number for each item of a gallery.

    Attributes:
        column: Name of the column that the number belongs to.
        title: Name of the number.
        values: One for each item.
        better: `higher` or `lower`; empty if neither is better.
        caption: The caption below the picture, with `{}` for the number; empty for none.
    """

    column: str
    title: str
    values: Sequence[float | None]
    better: str = ""
    caption: str = ""


@dataclass(frozen=True)
class GalleryItem:
    """One row of a gallery.

    Attributes:
        name: The id of the image.
        note: A remark of the run about the image.
        warning: Why averages leave out the image; empty if they do not.
    """

    name: str
    note: str = ""
    warning: str = ""


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures.

    Attributes:
        about: A sentence about the choice of the items.
        columns: Names of the pictures in a row.
        items: The rows.
        scores: The numbers that readers can sort by.
    """

    about: str
    columns: Sequence[str]
    items: Sequence[GalleryItem]
    scores: Sequence[Score]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        key: The HTML id.
        title: The heading.
        lead: Tables above the text.
        text: Paragraphs. Those of a gallery are below it.
        plots: Plots that are always visible.
        more: Plots that are hidden until the reader opens them.
        tables: The tables.
        gallery: The gallery, in one section of the page at most.
        code: A title and a text to copy.
    """

    key: str
    title: str
    text: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    more: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    gallery: Gallery | None = None
    code: tuple[str, str] | None = None
    lead: Sequence[Table] = ()


@dataclass(frozen=True)
class Page:
    """A report page.

    Attributes:
        warning: A warning at the top; empty for none.
        files: Names of other files in the same folder, to link to.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    warning: str = ""
    files: Sequence[str] = ()


def shown(estimate: Estimate | None, mark: str = "") -> Shown:
    """Format an estimate with its confidence interval; a dash if there is no value."""
    if estimate is None or math.isnan(estimate.value):
        return Shown(None, number(None))
    text = number(estimate.value)
    if not math.isnan(estimate.low):
        low, high = number(estimate.low), number(estimate.high)
        text += f" [{low}, {high}]"
    return Shown(estimate.value, text, mark)


def plain(cell: Cell) -> str:
    """Return a cell of a table as text."""
    if isinstance(cell, Shown):
        return cell.text
    return number(cell) if cell is None or isinstance(cell, float) else str(cell)


def render(page: Page, pictures: Iterable[Sequence[str | None]] = ()) -> Iterator[str]:
    """Render the page as HTML.

    Args:
        page: The content.
        pictures: For each item of the gallery one WebP in base64 per column, or None. The items are
            consumed one at a time, so that the pictures need not be in memory together.

    Yields:
        The parts of the document.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Texts that are markup already have a class of their own.
        finalize=lambda value: printable(value, keep="\n\t") if type(value) is str else value,
    )
    environment.filters |= {"number": number}
    found = [section.gallery for section in page.sections if section.gallery]
    yield from environment.from_string(_shipped("report.html.j2")).generate(
        page=page,
        version=__version__,
        style=_shipped("report.css"),
        script=_shipped("report.js"),
        gallery=_data(found[0]) if found else None,
        pictures=pictures,
    )


def _shipped(name: str) -> str:
    return resources.files("dhr_batch.configs").joinpath(name).read_text("utf-8")


def _data(gallery: Gallery) -> dict[str, object]:
    """Return the data that is embedded for the script of the page."""
    return {
        "columns": list(gallery.columns),
        "items": [[item.name, item.note, item.warning] for item in gallery.items],
        "scores": [
            {
                "column": gallery.columns.index(score.column),
                "title": score.title,
                "better": score.better,
                "caption": score.caption,
                "values": [_plain(value) for value in score.values],
            }
            for score in gallery.scores
        ],
    }


def _plain(value: float | None) -> float | str | None:
    """Round to six significant digits, and convert infinity to text, which JSON requires."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.6g}")
