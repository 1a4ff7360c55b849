"""The report of a run: an HTML page, a contact sheet, and the metrics as Markdown and CSV.

Everything is made from the Parquet tables of the run and its plan.json, without a network.
"""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, PngImagePlugin

from dhr_batch.pipeline.errors import ReportError
from dhr_batch.pipeline.report import contact_sheet, gallery, sections, summaries, truth
from dhr_batch.pipeline.report import page as report_page
from dhr_batch.pipeline.report.data import MIN_IN_DOMAIN_FACE, RunData, load, rows
from dhr_batch.pipeline.report.gallery import MAX_IMAGES
from dhr_batch.pipeline.report.metrics import number
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.units import duration

if TYPE_CHECKING:
    import pandas as pd


def write(
    run: str | Path | Storage, out: str | Path | None = None, max_images: int = MAX_IMAGES
) -> str:
    """Write index.html, contact_sheet.png, metrics.md and metrics.csv; returns where the page is.

    run, out: folder or URL of the run, and to write to, by default `report/` in the run.
    max_images: the page shows the pictures of at most that many images, and of fewer where each
    has many edits; numbers and plots are always of all.
    Raises ReportError where the run cannot be read or the `report` extra is missing.
    """
    _require_extra()
    source = connect(run)
    data = load(source)
    target, folder = (source, "report/") if out is None else (connect(out), "")
    target.replace(f"{folder}metrics.csv", summaries.wide(data).to_csv(index=False).encode())
    target.replace(f"{folder}metrics.md", markdown(data).encode())
    sheet = contact_sheet.draw(data, list(rows(source, data.image_ids[: contact_sheet.MAX_ROWS])))
    target.replace(f"{folder}contact_sheet.png", _png(sheet))
    page = f"{folder}index.html"
    target.replace(page, _page(source, data, max_images))
    return target.locate(page)


def _page(run: Storage, data: RunData, max_images: int) -> bytes:
    columns = len(contact_sheet.columns(data.edits, max_edits=None))
    shown, about = gallery.choose(data, gallery.capacity(columns, max_images))
    page = sections.page(data, gallery.gallery(data, shown, about))
    # In one buffer: thumbnails are bounded together, and a store takes a file at once.
    buffer = io.BytesIO()
    for text in report_page.render(page, gallery.pictures(run, shown, data.edits)):
        buffer.write(text.encode())
    return buffer.getvalue()


def markdown(data: RunData) -> str:
    """The summary of all metrics as a Markdown document."""
    lines = [f"# Metrics of {_md(data.name)}", ""]
    if data.random_weights:
        lines += ["**random weights**: no number here says anything about a trained model.", ""]
    excluded = data.excluded()
    lines += [f"{len(data.image_ids)} images, {len(data.quarantine)} quarantined.", ""]
    if excluded:
        names = ", ".join(_md(image_id) for image_id in excluded)
        limit = f"{MIN_IN_DOMAIN_FACE:.0%}"
        lines += [f"Not counted, less than {limit} of the face is in-domain: {names}.", ""]
    lines += [_md_table(summaries.summary(data)), ""]
    lines += truth.markdown(data.metrics)
    if data.distances:
        lines += ["## Distances between sets of pictures", "", summaries.SETS, ""]
        lines += ["| stage | metric | value | n | model |", "|---|---|---|---|---|"]
        for d in data.distances:
            cells = (d.stage, d.metric, f"{d.value:.4g}", d.n, d.model)
            lines.append(f"| {' | '.join(_md(str(cell)) for cell in cells)} |")
        lines.append("")
    if excluded:
        lines += ["## All images, those not counted included", ""]
        lines += [_md_table(summaries.summary(data, everything=True)), ""]
    if data.quarantine:
        lines += [
            "## Failures",
            "",
            "| class | images | first one | message |",
            "|---|---|---|---|",
        ]
        for found in summaries.failures(data):
            words = (found.name, found.count, found.example["image_id"], found.example["message"])
            lines.append(f"| {' | '.join(_md(str(word)) for word in words)} |")
        lines.append("")
    if speed := summaries.throughput(data.throughput):
        mean, top = number(speed.mean), number(max(speed.rates))
        took = duration(speed.edges[-1])
        lines += [f"Throughput: {mean} images/s over {took}, at most {top} images/s.", ""]
    return "\n".join(lines)


def _md_table(table: pd.DataFrame) -> str:
    shown = table.copy()
    for column in ("stage", "metric", "model"):
        shown[column] = shown[column].map(_md)
    for column in ("mean", "median", "min", "max"):
        shown[column] = shown[column].map(number)
    return str(shown.to_markdown(index=False, disable_numparse=True))


def _md(text: str) -> str:
    escaped = html.escape(str(text), quote=False).replace("\\", "\\\\").replace("|", "\\|")
    return escaped.replace("\n", " ").replace("*", "\\*").replace("`", "\\`")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "edited by dhr-batch: the columns name edits and strengths")
    image.save(buffer, "PNG", compress_level=6, pnginfo=text)
    return buffer.getvalue()


def _require_extra() -> None:
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import pandas  # noqa: F401
        import tabulate  # noqa: F401
    except ImportError as error:
        raise ReportError(
            f"the report needs the package {error.name}: pip install 'dhr-batch[report]'"
        ) from error
