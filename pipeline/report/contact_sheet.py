"""The contact sheet of a run: source, inversion, refinement, mask and edits, in a row per image."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from PIL import Image, ImageDraw, ImageFont

from dhr_batch.pipeline.printable import printable
from dhr_batch.pipeline.report.data import ImageRow, RunData
from dhr_batch.pipeline.report.pictures import decode, overlay
from dhr_batch.pipeline.units import edit_title, number
from dhr_batch.stages.record import EDIT_STAGE, edit_stage

MAX_ROWS = 12
CELL = 192
GAP = 8
MARGIN = 28
HEAD = 92
LABELS = 30
CAPTION = 30
FOOT = 40
MAX_EDITS = 10

PAPER, INK, FAINT, EMPTY, WARN = "#ffffff", "#16181d", "#6b7280", "#eef0f3", "#b42318"

Column = tuple[str, str]


def columns(edits: Sequence[tuple[str, float]], max_edits: int | None = MAX_EDITS) -> list[Column]:
    """Return label and stage of each column: four fixed ones, then edits.

    Args:
        edits: Name and strength of the edits, in order.
        max_edits: If there are more edits, only the lowest and the highest strength of each name
            are shown; None for no limit.
    """
    if max_edits is not None and len(edits) > max_edits:
        ends: dict[tuple[str, float], None] = {}
        for name in dict.fromkeys(name for name, _ in edits):
            strengths = [s for n, s in edits if n == name]
            ends |= {(name, s): None for s in (strengths[0], strengths[-1])}
        edits = list(ends)[:max_edits]
    chosen = [(edit_title(*edit), edit_stage(*edit)) for edit in edits]
    fixed = [("source", "aligned"), ("inverted", "inverted"), ("refined", "refined")]
    return [*fixed, ("mask", "mask"), *chosen]


def size(n_rows: int, n_columns: int) -> tuple[int, int]:
    """Return width and height of a sheet in pixels."""
    width = 2 * MARGIN + n_columns * (CELL + GAP) - GAP
    return width, HEAD + LABELS + n_rows * (CELL + CAPTION + GAP) + FOOT


def draw(data: RunData, rows: Sequence[ImageRow]) -> Image.Image:
    """Draw the sheet, with PSNR and identity distance below each picture.

    Args:
        data: The run.
        rows: The images to show.
    """
    heads = columns(data.edits)
    sheet = Image.new("RGB", size(len(rows), len(heads)), PAPER)
    pen = ImageDraw.Draw(sheet)
    _head(pen, data, sheet.width)
    for n, (label, _) in enumerate(heads):
        x = MARGIN + n * (CELL + GAP)
        font = _font(16, bold=True)
        text = _shorten(pen, label, font, CELL)
        pen.text((x + CELL / 2, HEAD + 6), text, INK, font, anchor="ma")
    values = _values(data, rows)
    for n, row in enumerate(rows):
        y = HEAD + LABELS + n * (CELL + CAPTION + GAP)
        for m, (_, stage) in enumerate(heads):
            x = MARGIN + m * (CELL + GAP)
            _cell(sheet, row, stage, x, y)
            caption, colour = _caption(data, values, row, stage)
            text = _shorten(pen, caption, _font(14), CELL)
            pen.text((x + CELL / 2, y + CELL + 5), text, colour, _font(14), anchor="ma")
    shown = f"{len(rows)} of {len(data.image_ids)} images shown"
    if data.quarantine:
        shown += f", {len(data.quarantine)} more quarantined"
    note = f"{shown}. Mask: the tinted part is out-of-domain. id: dlib identity distance to source."
    pen.text((MARGIN, sheet.height - FOOT + 8), note, FAINT, _font(14))
    return sheet


def _head(pen: ImageDraw.ImageDraw, data: RunData, width: int) -> None:
    available = width - 2 * MARGIN
    name = _shorten(pen, f"dhr-batch · {data.name}", _font(26, bold=True), available)
    pen.text((MARGIN, 22), name, INK, _font(26, bold=True))
    if data.random_weights:
        warning = "random weights: these pictures show nothing about a trained generator"
        pen.text((MARGIN, 58), warning, WARN, _font(17, bold=True))
    else:
        text = "source, inversion, refinement, in-domain mask and edits of one face per row"
        pen.text((MARGIN, 58), _shorten(pen, text, _font(17), available), FAINT, _font(17))


def _cell(sheet: Image.Image, row: ImageRow, stage: str, x: int, y: int) -> None:
    image = picture(row, stage, CELL)
    if image is None:
        ImageDraw.Draw(sheet).rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=EMPTY)
        return
    sheet.paste(image.resize((CELL, CELL), Image.Resampling.LANCZOS), (x, y))


def picture(row: ImageRow, stage: str, side: int) -> Image.Image | None:
    """Return the picture of an image for one column, or None if it is not stored.

    Args:
        row: The image.
        stage: `aligned`, `mask`, `edit:smile:2` and so on.
        side: Maximum side in pixels. Smaller pictures are not enlarged.
    """
    if stage == "mask":
        source = picture(row, "aligned", side)
        if source is None or row.mask is None:
            return None
        return overlay(source, decode(row.mask, f"mask of {row.image_id!r}"))
    data = next((e.data for e in row.edits if e.stage == stage), row.pictures.get(stage))
    if data is None:
        return None
    image = decode(data, f"{stage} picture of {row.image_id!r}").convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _values(data: RunData, rows: Sequence[ImageRow]) -> dict[tuple[str, str, str], float]:
    shown = data.metrics[data.metrics["image_id"].isin([row.image_id for row in rows])]
    keys = zip(shown["image_id"], shown["stage"], shown["metric"], strict=True)
    return {key: value for key, value in zip(keys, shown["value"], strict=True) if value == value}


def _caption(
    data: RunData, values: dict[tuple[str, str, str], float], row: ImageRow, stage: str
) -> tuple[str, str]:
    if stage == "aligned":
        return row.image_id, INK
    if stage == "mask":
        share = data.in_domain_face.get(row.image_id)
        if share is None:
            return "", FAINT
        low = row.image_id in data.excluded()
        return f"{share:.0%} of face in-domain", WARN if low else FAINT
    parts = []
    psnr = values.get((row.image_id, stage, "psnr"))
    distance = values.get((row.image_id, stage, "identity_dlib_distance"))
    if psnr is not None and not stage.startswith(EDIT_STAGE):
        parts.append(f"{number(psnr)} dB")
    if distance is not None:
        parts.append(f"id {distance:.2f}")
    return "   ".join(parts), FAINT


def _shorten(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float
) -> str:
    """Replace the middle of a text that is wider than `width` pixels by an ellipsis."""
    text = printable(text)
    if pen.textlength(text, font) <= width:
        return text
    keep = len(text)
    while keep > 2 and pen.textlength(_middle_cut(text, keep), font) > width:
        keep -= 1
    return _middle_cut(text, keep)


def _middle_cut(text: str, keep: int) -> str:
    return text[: keep // 2] + "…" + text[len(text) - (keep - keep // 2) :]


def _font(pixels: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(resources.files("dhr_batch.configs") / "fonts" / name), pixels)
