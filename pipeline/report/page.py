"""A report page from plain data: sections of plots and tables, and one gallery of pictures.

Knows neither runs nor tables: whoever has a `Page` gets one self-contained HTML file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from dhr_batch.pipeline.report.metrics import number
from dhr_batch.pipeline.stats.bootstrap import Estimate
from dhr_batch.version import __version__


@dataclass(frozen=True)
class Shown:
    """A number that stands in a table as `text` and is sorted by its value. mark: `best`, `second`
    or none."""

    value: float | None
    text: str
    mark: str = ""


Cell = str | int | float | Shown | None


@dataclass(frozen=True)
class Column:
    """A column of a table. number: aligned right; code: in type of one width, broken anywhere."""

    title: str
    number: bool = False
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table that readers sort. Floats are shown with four digits and sorted by their value."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot with its headline. svg: of `report_plots`; means: series -> number, the last counts
    most."""

    title: str
    svg: str
    hint: str = ""
    means: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One number per item of a gallery.

    column: name of the gallery's column it belongs to. better: `higher`, `lower`, or `` where
    neither is. caption: how it stands below the picture, `{}` for the number; `` if it does not.
    """

    column: str
    title: str
    values: Sequence[float | None]
    better: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Item:
    """One row of a gallery. warning: why its numbers do not count, if they do not."""

    name: str
    note: str = ""
    warning: str = ""


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures. about: which items these are; columns: names of the pictures in a row."""

    about: str
    columns: Sequence[str]
    items: Sequence[Item]
    scores: Sequence[Score]


@dataclass(frozen=True)
class Section:
    """A part of the page. more: plots that are folded away; code: a title and text to copy."""

    key: str
    title: str
    text: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    more: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    gallery: Gallery | None = None
    code: tuple[str, str] | None = None


@dataclass(frozen=True)
class Page:
    """A report. warning: said above everything else. files: more files beside the page."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    warning: str = ""
    files: Sequence[str] = ()


def shown(estimate: Estimate | None, mark: str = "") -> Shown:
    """An estimate with its confidence interval; a dash for none."""
    if estimate is None or math.isnan(estimate.value):
        return Shown(None, number(None))
    text = number(estimate.value)
    if not math.isnan(estimate.low):
        low, high = number(estimate.low), number(estimate.high)
        text += f" [{low}, {high}]"
    return Shown(estimate.value, text, mark)


def render(page: Page, pictures: Iterable[Sequence[str | None]] = ()) -> Iterator[str]:
    """The page, piece by piece.

    pictures: for each item of the gallery one WebP in base64 per column, None where there is none;
    taken one item at a time, so that they need not be in memory together.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
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
    """What the script of the page gets."""
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
    """Six digits; JSON knows no infinity."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.6g}")
