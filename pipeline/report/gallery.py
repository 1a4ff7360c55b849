"""The gallery of a report: the choice of images, their metrics, and their thumbnails."""

from __future__ import annotations

import base64
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

from PIL import ExifTags, Image

from dhr_batch.pipeline.report import contact_sheet
from dhr_batch.pipeline.report import data as report_data
from dhr_batch.pipeline.report.data import ImageRow, RunData
from dhr_batch.pipeline.report.metrics import HEADLINES, better, metric_key, stage_key, title
from dhr_batch.pipeline.report.page import Gallery, GalleryItem, Score
from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.stages.record import EDIT_STAGE

MAX_IMAGES = 3000
# Limit for all pictures of a page in base64. A browser opens such a file within seconds.
PAGE_BYTES = 64 * 2**20
# Side in pixels and the base64 bytes that a face of this size takes as a WebP at most.
_SIZES = {320: 16_000, 256: 11_000, 192: 7_000, 128: 4_000, 96: 2_200}
_QUALITIES = (75, 50, 25)
_THREADS = 8
_CAPTIONS = {
    "psnr": "{} dB",
    "st_lpips_alex": "ST-LPIPS {}",
    "identity_dlib_distance": "identity {}",
}
_IN_DOMAIN = "In-domain share of the face"


def choose(data: RunData, most: int) -> tuple[list[str], str]:
    """Choose the images of the gallery.

    If a run has more than `most` images, half of those shown are the worst by the headline metrics.
    The others are chosen by a checksum of their ids, so every report shows the same ones.

    Returns:
        The ids in the order of the run, and a sentence that describes the choice.
    """
    total = len(data.image_ids)
    if total <= most:
        return data.image_ids, "" if total == 1 else f"All {total} images."
    refined = data.metrics[data.metrics["stage"] == "refined"]
    metrics = [m for m in HEADLINES if (refined["metric"] == m).any()]
    share = most // 2 // max(len(metrics), 1)
    chosen: set[str] = set()
    for metric in metrics:
        worst = refined[refined["metric"] == metric].sort_values(
            "value", ascending=better(metric) == "higher", kind="stable"
        )
        chosen |= set(worst["image_id"][:share])
    drawn = sorted(set(data.image_ids) - chosen, key=lambda i: (zlib.crc32(i.encode()), i))
    chosen |= set(drawn[: most - len(chosen)])
    worst_by = ", ".join(title(m) for m in metrics)
    about = f"{most} of {total} images: "
    about += f"the {share} worst refined ones by each of {worst_by}; the others " if metrics else ""
    about += "drawn at random. Numbers and plots elsewhere on this page are of all images."
    return [i for i in data.image_ids if i in chosen], about


def capacity(columns: int, most: int = MAX_IMAGES) -> int:
    """Return how many images fit into a page.

    Args:
        columns: Number of pictures per image.
        most: Upper limit of the result.
    """
    return max(1, min(most, PAGE_BYTES // (columns * min(_SIZES.values()))))


def gallery(data: RunData, image_ids: Sequence[str], about: str) -> Gallery:
    """Return the gallery of the given images, without its pictures."""
    columns = contact_sheet.columns(data.edits, max_edits=None)
    excluded = set(data.excluded())
    shares = data.in_domain_face
    items = [
        GalleryItem(i, data.notes.get(i, ""), _warning(shares[i]) if i in excluded else "")
        for i in image_ids
    ]
    scores = list(_scores(data, image_ids, {stage: label for label, stage in columns}))
    if shares:
        values = [shares.get(i) for i in image_ids]
        scores.append(Score("mask", _IN_DOMAIN, values, "higher", "{} of face"))
    return Gallery(about, [label for label, _ in columns], items, scores)


def _warning(share: float) -> str:
    return f"not counted: {share:.0%} of the face is in-domain"


def _scores(data: RunData, image_ids: Sequence[str], labels: dict[str, str]) -> Iterator[Score]:
    """Iterate over the metrics of all pictures. Metrics of the source belong to its picture."""
    names = labels | {"source": labels["aligned"]}
    long = data.metrics[data.metrics["image_id"].isin(image_ids)]
    groups = {key: group for key, group in long.groupby(["stage", "metric"], observed=True)}
    for stage, metric in sorted(groups, key=_order):
        if stage not in names:
            continue
        group = groups[stage, metric]
        values = dict(zip(group["image_id"], group["value"].tolist(), strict=True))
        caption = _CAPTIONS.get(metric, "")
        if stage.startswith(EDIT_STAGE) and not metric.startswith("identity"):
            # Metrics such as the PSNR of an edit would only tell how much it has changed.
            caption = ""
        yield Score(
            names[stage],
            title(metric),
            [values.get(i) for i in image_ids],
            better(metric),
            caption,
        )


def _order(key: tuple[str, str]) -> tuple[object, object]:
    return stage_key(key[0]), metric_key(key[1])


def pictures(
    run: Storage | Parts, image_ids: Sequence[str], edits: Sequence[tuple[str, float]]
) -> Iterator[list[str | None]]:
    """Iterate over the thumbnails of the images; each image has one per column.

    The pictures of only a few images are in memory at a time.

    Args:
        run: The run.
        image_ids: The images, in the order of the tables.
        edits: Name and strength of the edits to show.

    Yields:
        WebP in base64 for each column, or None for a picture that is not stored. All of them
        together take at most `PAGE_BYTES`.
    """
    columns = contact_sheet.columns(edits, max_edits=None)
    stages = [stage for _, stage in columns]
    allowed = PAGE_BYTES // max(len(image_ids) * len(columns), 1)
    side = next((side for side, size in _SIZES.items() if size <= allowed), min(_SIZES))
    rows = report_data.rows(run, image_ids)
    threads = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(rows, threads)):
            yield from pool.map(partial(thumbnails, stages=stages, side=side, most=allowed), batch)


def thumbnails(row: ImageRow, stages: Sequence[str], side: int, most: int) -> list[str | None]:
    """Return the thumbnails of one image, of at most `side` pixels and `most` bytes each."""
    return [thumbnail(row, stage, side, most) for stage in stages]


def thumbnail(row: ImageRow, stage: str, side: int, most: int) -> str | None:
    """Return the thumbnail of one stage, or None if the image has no such picture."""
    image = contact_sheet.picture(row, stage, side)
    mark = stage.removeprefix(EDIT_STAGE) if stage.startswith(EDIT_STAGE) else ""
    return None if image is None else webp(image, side, most, mark)


def webp(image: Image.Image, side: int, most: int, edit: str = "") -> str:
    """Encode a picture as WebP in base64.

    Quality and then size are reduced until the result fits.

    Args:
        image: The picture.
        side: Maximum side in pixels.
        most: Maximum number of bytes.
        edit: Name and strength of the edit, which are written to the EXIF data; empty for none.
    """
    exif = Image.Exif()
    if edit:
        exif[ExifTags.Base.ImageDescription] = f"edited by dhr-batch: {edit}"
    small = image.copy()
    while True:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=quality, method=4, exif=exif)
            text = base64.b64encode(buffer.getvalue())
            if len(text) <= most or side == 1:
                return text.decode()
        side = max(1, side // 2)
