"""The report of a run: an HTML page, a contact sheet, and the metrics as Markdown and CSV.

Everything is made from the Parquet tables of the run and its plan.json, without a network.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ExifTags, Image, PngImagePlugin

from dhr_batch import __version__
from dhr_batch.pipeline import contact_sheet, models, report_tables
from dhr_batch.pipeline.plan_file import Rows
from dhr_batch.pipeline.report_data import (
    MIN_IN_DOMAIN_FACE,
    ReportError,
    Row,
    RunData,
    load,
)
from dhr_batch.pipeline.storage import Storage, connect

if TYPE_CHECKING:
    import pandas as pd

THUMBNAIL = 320
MAX_FAILURES = 200
SETTING_WIDTH = 300


def write(run: str | Path | Storage, out: str | Path | None = None, max_images: int = 40) -> str:
    """Write index.html, contact_sheet.png, metrics.md and metrics.csv; returns where the page is.

    run, out: folder or URL of the run, and to write to, by default `report/` in the run.
    max_images: the page shows the pictures of that many images; numbers are always of all.
    Raises ReportError where the run cannot be read or the `report` extra is missing.
    """
    _require_extra()
    source = connect(run)
    data = load(source, max_images)
    target, folder = (source, "report/") if out is None else (connect(out), "")
    page = f"{folder}index.html"
    target.replace(f"{folder}metrics.csv", report_tables.wide(data).to_csv(index=False).encode())
    target.replace(f"{folder}metrics.md", markdown(data).encode())
    target.replace(f"{folder}contact_sheet.png", _png(contact_sheet.draw(data)))
    target.replace(page, render(data).encode())
    return target.locate(page)


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
    lines += [_md_table(report_tables.summary(data)), ""]
    if excluded:
        lines += ["## All images, those not counted included", ""]
        lines += [_md_table(report_tables.summary(data, everything=True)), ""]
    if data.quarantine:
        lines += [
            "## Failures",
            "",
            "| class | images | first one | message |",
            "|---|---|---|---|",
        ]
        for found in report_tables.failures(data):
            words = (found.name, found.count, found.example["image_id"], found.example["message"])
            lines.append(f"| {' | '.join(_md(str(word)) for word in words)} |")
        lines.append("")
    if speed := report_tables.throughput(data.throughput):
        took, top = speed.histogram.ticks[1], speed.histogram.top
        lines += [f"Throughput: {speed.means['rate']} over {took}, at most {top}.", ""]
    return "\n".join(lines)


def render(data: RunData) -> str:
    """The whole report page: self-contained HTML, every picture embedded."""
    import jinja2

    source = resources.files("dhr_batch.configs").joinpath("report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": report_tables.number, "title": report_tables.title}
    excluded = set(data.excluded())
    metrics = None if data.metrics.empty else report_tables.wide(data)
    table = report_tables.summary(data).to_dict("records")
    return environment.from_string(source).render(
        data=data,
        version=__version__,
        limit=f"{MIN_IN_DOMAIN_FACE:.0%}",
        excluded=sorted(excluded),
        cards=report_tables.cards(data),
        summary=[r for r in table if not r["stage"].startswith("edit:")],
        edit_summary=[r for r in table if r["stage"].startswith("edit:")],
        images=[_shown(data, row, metrics, row.image_id in excluded) for row in data.rows],
        failures=data.quarantine[:MAX_FAILURES],
        failure_classes=report_tables.failures(data),
        settings=_settings(data.plan),
        licences=_licences(data),
    )


def _shown(data: RunData, row: Row, metrics: pd.DataFrame | None, low: bool) -> dict[str, Any]:
    """One image as the template wants it."""
    numbers: dict[str, dict[str, float]] = {}
    if metrics is not None:
        for record in metrics[metrics["image_id"] == row.image_id].to_dict("records"):
            fixed = ("image_id", "stage", "in_domain_face", "counted")
            values = {k: v for k, v in record.items() if k not in fixed and v == v}
            numbers[record["stage"]] = values
    strips: dict[str, list[dict[str, Any]]] = {}
    for edit in row.edits:
        strips.setdefault(edit.name, []).append(
            {
                "label": report_tables.signed(edit.strength),
                "alt": f"{row.image_id}: {edit.name} at strength {edit.strength:+g}",
                "uri": _thumbnail(row, edit.stage),
                "values": _headline(numbers.get(edit.stage, {}), ("identity_dlib_distance",)),
            }
        )
    words = {"aligned": "source", "inverted": "inverted", "refined": "refined", "mask": "mask"}
    figures = [
        {
            "label": label,
            "alt": f"{row.image_id}: {label}",
            "uri": _thumbnail(row, stage),
            "values": _headline(numbers.get(stage, {})),
        }
        for stage, label in words.items()
    ]
    share = data.in_domain_face.get(row.image_id)
    return {
        "id": row.image_id,
        "note": row.note,
        "share": None if share is None else f"{share:.0%}",
        "low": low,
        "figures": figures,
        "strips": strips,
        "stages": sorted(numbers, key=report_tables.stage_key),
        "numbers": numbers,
        "metrics": sorted({m for v in numbers.values() for m in v}, key=report_tables.metric_key),
    }


def _headline(values: dict[str, float], only: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Short captions; PSNR of an edit, for one, would only say how much it changed."""
    short = {"psnr": "PSNR", "st_lpips_alex": "ST-LPIPS", "identity_dlib_distance": "identity"}
    chosen = [m for m in only or short if m in values]
    return [(short[m], report_tables.number(values[m])) for m in chosen]


def _thumbnail(row: Row, stage: str) -> str | None:
    image = contact_sheet.picture(row, stage)
    mark = stage.removeprefix("edit:") if stage.startswith("edit:") else ""
    return None if image is None else _data_uri(image, THUMBNAIL, mark)


def _data_uri(image: Image.Image, side: int, edit: str = "") -> str:
    """A WebP of at most `side` pixels; that of an edit names it in its EXIF data."""
    small = image.convert("RGB")
    small.thumbnail((side, side * 4), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    exif = Image.Exif()
    if edit:
        exif[ExifTags.Base.ImageDescription] = f"edited by dhr-batch: {edit}"
    small.save(buffer, "WEBP", quality=86, method=4, exif=exif)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _licences(data: RunData) -> list[models.Model]:
    """Descriptions of the models that the run used, as far as the registry still knows them."""
    known = models.models()
    return [known[name] for name in data.models if name in known]


def _settings(plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of plan.json, without the second copy of the settings in its fingerprint."""
    prints = {k: v for k, v in plan.get("fingerprint", {}).items() if k != "config"}
    return _flatten(plan | ({"fingerprint": prints} if prints else {}))


def _flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted rows; long lists are counted instead of listed."""
    if isinstance(tree, dict) and tree:
        rows = [_flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in tree.items()]
        return [row for part in rows for row in part]
    if not prefix:
        return []
    if isinstance(tree, Rows):
        return [(prefix, f"{len(tree)} entries")]
    text = tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
    if isinstance(tree, list) and len(text) > SETTING_WIDTH:
        text = f"{len(tree)} entries"
    return [(prefix, text if len(text) <= SETTING_WIDTH else text[:SETTING_WIDTH] + "…")]


def _md_table(table: pd.DataFrame) -> str:
    shown = table.copy()
    for column in ("stage", "metric", "model"):
        shown[column] = shown[column].map(_md)
    for column in ("mean", "median", "min", "max"):
        shown[column] = shown[column].map(report_tables.number)
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
