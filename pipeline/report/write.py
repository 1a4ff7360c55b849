"""Write the report of a run: an HTML page, a contact sheet, and metrics as Markdown and CSV.

A report uses only the Parquet tables and the plan of the run. It needs neither models nor a network
connection.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, PngImagePlugin

from dhr_batch.pipeline.markdown import escaped, table_lines
from dhr_batch.pipeline.planning import origin
from dhr_batch.pipeline.printable import csv_cell
from dhr_batch.pipeline.report import contact_sheet, gallery, sections, speed, summaries, truth
from dhr_batch.pipeline.report import page as report_page
from dhr_batch.pipeline.report.data import MIN_IN_DOMAIN_FACE, RunData, load, rows
from dhr_batch.pipeline.report.gallery import MAX_IMAGES
from dhr_batch.pipeline.report.page import plain
from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import REPORT, RUN, Owned, require_apart
from dhr_batch.pipeline.units import duration, number

if TYPE_CHECKING:
    import pandas as pd

# Headings and units of the table with which metrics.md begins.
_HEADLINES = {
    "psnr": ("PSNR", " dB"),
    "psnr_in": ("PSNR in-domain", " dB"),
    "st_lpips_alex": ("ST-LPIPS (alex)", ""),
    "lpips_alex": ("LPIPS (alex)", ""),
    "identity_dlib_distance": ("identity distance (dlib)", ""),
}
_ROWS = (("inverted", "embed", "embedding"), ("refined", "refine", "refined"))


def write_report(
    run: str | Path | Storage, out: str | Path | None = None, max_images: int = MAX_IMAGES
) -> str:
    """Write index.html, contact_sheet.png, metrics.md and metrics.csv.

    Args:
        run: Folder or URL of the run.
        out: Folder or URL to write to; by default `report/` in the run.
        max_images: The page shows the pictures of at most this number of images, and of fewer if
            they have many edits. Numbers and plots always include all images.

    Returns:
        The path or URL of the page.

    Raises:
        CommandError: If the run cannot be read.
        Refused: If a file with one of these names was not written by a report. It is left as it is,
            and the other files are written.
    """
    source = Parts(RunRecords(run))
    data = load(source)
    target, folder = _target(source.storage, data, out)
    table = summaries.wide(data).map(csv_cell)
    table.columns = list(map(csv_cell, table.columns))
    target.write(f"{folder}metrics.csv", table.to_csv(index=False).encode())
    target.write(f"{folder}metrics.md", markdown(data).encode())
    sheet = contact_sheet.draw(data, list(rows(source, data.image_ids[: contact_sheet.MAX_ROWS])))
    target.write(f"{folder}contact_sheet.png", _png(sheet))
    page = f"{folder}index.html"
    target.write(page, _page(source, data, max_images))
    target.require()
    return target.storage.locate(page)


def _target(source: Storage, data: RunData, out: str | Path | None) -> tuple[Owned, str]:
    """Return the place to write to, and the prefix of all keys."""
    target = source if out is None else connect(out)
    if out is None or target.address == f"{source.address.rstrip('/')}/report":
        return Owned(source, RUN), "report/"
    require_apart(target, origin.inputs(source, data.plan))
    owned = Owned(target, REPORT)
    owned.claim()
    return owned, ""


def _page(run: Parts, data: RunData, max_images: int) -> bytes:
    columns = len(contact_sheet.columns(data.edits, max_edits=None))
    shown, about = gallery.choose(data, gallery.capacity(columns, max_images))
    page = sections.page(data, gallery.gallery(data, shown, about))
    # The size of all thumbnails is limited, and an object store takes a file as a whole.
    buffer = io.BytesIO()
    for text in report_page.render(page, gallery.pictures(run, shown, data.edits)):
        buffer.write(text.encode())
    return buffer.getvalue()


def markdown(data: RunData) -> str:
    """Return the summary of all metrics as a Markdown document."""
    lines = [f"# Metrics of {escaped(data.name)}", ""]
    if data.random_weights:
        lines += ["**random weights**: these numbers say nothing about a trained model.", ""]
    excluded = data.excluded()
    lines += _headlines(data)
    lines += [f"{data.counted}, {len(data.quarantine)} quarantined.", ""]
    if excluded:
        names = ", ".join(escaped(image_id) for image_id in excluded)
        limit = f"{MIN_IN_DOMAIN_FACE:.0%}"
        lines += [f"Not counted, because less than {limit} of the face is in-domain: {names}.", ""]
    lines += _summary(summaries.summary(data))
    lines += truth.markdown(data.metrics)
    if data.distances:
        lines += ["## Distances between sets of pictures", "", summaries.SETS, ""]
        found = [(d.stage, d.metric, f"{d.value:.4g}", d.n, d.model) for d in data.distances]
        lines += _table(["stage", "metric", "value", "n", "model"], found)
    if excluded:
        lines += ["## All images, including those that are not counted", ""]
        lines += _summary(summaries.summary(data, everything=True))
    if data.quarantine:
        failures = (
            (found.name, found.count, found.example["image_id"], found.example["message"])
            for found in summaries.failures(data)
        )
        lines += ["## Failures", ""]
        lines += _table(["class", "images", "first one", "message"], failures)
    if stages := summaries.stage_seconds(data):
        lines += [f"## {speed.TITLE}", "", speed.TEXT, ""]
        cells = ([plain(cell) for cell in row] for row in speed.rows(stages))
        lines += _table(speed.HEADS, cells)
    if rate := summaries.throughput(data.throughput):
        mean, top = number(rate.mean), number(max(rate.rates))
        took = duration(rate.edges[-1])
        lines += [f"Throughput: {mean} images/s over {took}, at most {top} images/s.", ""]
    return "\n".join(lines)


def _headlines(data: RunData) -> list[str]:
    """Return a small table: the means of well-known metrics before and after the refinement."""
    table = summaries.summary(data)
    # A metric that several models have measured has the mean of the first one.
    keys = zip(table["stage"], table["metric"], strict=True)
    means = dict(reversed(list(zip(keys, table["mean"], strict=True))))
    metrics = [m for m in _HEADLINES if {("inverted", m), ("refined", m)} & means.keys()]
    if not metrics:
        return []
    rows = []
    for stage, family, word in _ROWS:
        own = data.plan.settings.values.get(family, {})
        steps = f", {own['steps']} steps" if own.get("steps") else ""
        name = re.sub(r"[`|\s]", "", str(own.get("name", "")))
        found = {m: number(means.get((stage, m))) for m in metrics}
        cells = [v if v == number(None) else v + _HEADLINES[m][1] for m, v in found.items()]
        rows.append([f"{word} (`{name}`{steps})" if name else word, *cells])
    return table_lines(["", *(_HEADLINES[m][0] for m in metrics)], rows)


def _summary(table: pd.DataFrame) -> list[str]:
    shown = table.copy()
    for column in ("mean", "median", "min", "max"):
        shown[column] = shown[column].map(number)
    return _table(list(shown), shown.itertuples(index=False))


def _table(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    return table_lines(heads, ([escaped(cell) for cell in row] for row in rows))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "edited by dhr-batch: the columns name edits and strengths")
    image.save(buffer, "PNG", compress_level=6, pnginfo=text)
    return buffer.getvalue()
