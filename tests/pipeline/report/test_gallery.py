"""The pictures of a report: which are shown, how large, and the contact sheet."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dhr_batch.pipeline.report import contact_sheet, gallery
from dhr_batch.pipeline.report import data as report_data
from dhr_batch.pipeline.report import pictures as report_pictures
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.pipeline.reported import EDITS, IDS, embedded, names, portrait, write


def test_edited_pictures_say_so(make_run: Callable[..., Path]) -> None:
    gallery, rows = embedded(write(make_run()))
    assert gallery["columns"][4:] == ["smile -2", "smile +2", "yaw +1.5"]
    for row in rows:
        pictures = [Image.open(io.BytesIO(data)) for data in row if data]
        marks = [image.getexif().get(0x010E) for image in pictures]
        said = [f"edited by dhr-batch: {name}:{strength:g}" for name, strength in EDITS]
        assert marks == [None] * 4 + said


def test_pictures_are_those_of_their_row(make_run: Callable[..., Path]) -> None:
    """Ids, numbers and pictures stand in three places of the page."""
    gallery, rows = embedded(write(make_run()))
    for n, row in enumerate(rows):
        for m in (0, 1, 2, 4, 5, 6):
            expected = np.asarray(Image.open(io.BytesIO(portrait(10 * n + m - (m > 3)))))
            shown = np.asarray(Image.open(io.BytesIO(row[m] or b"")).convert("RGB"))
            np.testing.assert_allclose(shown[-8:].mean((0, 1)), expected[-8:].mean((0, 1)), atol=6)
    (psnr,) = [s for s in gallery["scores"] if (s["column"], s["title"]) == (2, "PSNR [dB]")]
    assert (psnr["values"], psnr["better"]) == ([28.0, 29.0, 30.0], "higher")
    (share,) = [s for s in gallery["scores"] if s["column"] == 3]
    np.testing.assert_allclose(share["values"], [1.0, 0.75, 0.0])
    assert [item[2] for item in gallery["items"]] == [
        "",
        "",
        "not counted: 0% of the face is in-domain",
    ]


def test_contact_sheet_has_the_planned_size(make_run: Callable[..., Path]) -> None:
    sheet = Image.open(write(make_run()).parent / "contact_sheet.png")
    sheet.load()
    assert sheet.size == contact_sheet.size(len(IDS), 4 + len(EDITS))
    x = contact_sheet.MARGIN + contact_sheet.CELL // 2
    y = contact_sheet.HEAD + contact_sheet.LABELS + contact_sheet.CELL - 20
    expected = np.asarray(Image.open(io.BytesIO(portrait(0))))[-6, 32]
    np.testing.assert_allclose(sheet.convert("RGB").getpixel((x, y)), expected, atol=8)


def test_contact_sheet_keeps_the_outermost_strengths() -> None:
    edits = [(n, s) for n in "ab" for s in (-2.0, -1.0, 1.0, 2.0)]
    heads = contact_sheet.columns(edits, max_edits=4)
    assert [label for label, _ in heads[4:]] == ["a -2", "a +2", "b -2", "b +2"]


def test_overlay_tints_only_the_out_of_domain_part() -> None:
    image = Image.fromarray(np.full((8, 8, 3), 100, np.uint8))
    inside = np.zeros((8, 8), np.uint8)
    inside[:4] = 255
    result = np.asarray(report_pictures.overlay(image, Image.fromarray(inside)))
    assert (result[:4] == 100).all()
    assert (result[4] == 255).all()
    assert (result[5:] != 100).any(-1).all()


def test_a_sample_holds_the_worst_and_says_so(make_run: Callable[..., Path]) -> None:
    run = make_run()
    page = write(run, max_images=2)
    # The lowest PSNR and the greatest identity distance; the numbers are of all.
    data = report_data.load(connect(run))
    chosen, about = gallery.choose(data, 2)
    assert names(page) == chosen
    assert about.startswith("2 of 3 images: ")
    assert about in html.unescape(page.read_text("utf-8"))
    assert pd.read_csv(run / "report" / "metrics.csv")["image_id"].nunique() == 3


def test_the_worst_of_each_metric_are_chosen() -> None:
    ids = [f"{n:03}.png" for n in range(200)]
    psnr, distance = {i: 30.0 for i in ids}, {i: 0.2 for i in ids}
    psnr |= {"007.png": 12.0, "150.png": 13.0}
    distance |= {"099.png": 0.9, "180.png": 0.8}
    rows = [
        {"image_id": i, "stage": "refined", "metric": metric, "value": values[i], "model": "none"}
        for metric, values in (("psnr", psnr), ("identity_dlib_distance", distance))
        for i in ids
    ]
    data = report_data.RunData("run", StoredPlan(), ids, pd.DataFrame(rows), [], {})
    chosen, about = gallery.choose(data, 8)
    assert len(chosen) == 8
    assert chosen == sorted(chosen)
    assert {"007.png", "150.png", "099.png", "180.png"} <= set(chosen)
    assert "the 2 worst refined ones by each of PSNR [dB], Identity distance (dlib)" in about
    assert gallery.choose(data, 8) == (chosen, about)
    assert gallery.choose(data, 200) == (ids, "All 200 images.")


def test_a_page_takes_fewer_images_where_each_has_many_edits() -> None:
    assert gallery.capacity(10) == gallery.MAX_IMAGES
    assert gallery.capacity(100) == gallery.PAGE_BYTES // (100 * 2200)
    assert gallery.capacity(10**9) == 1


@pytest.mark.parametrize("most", [2200, 300])
def test_a_thumbnail_never_exceeds_its_bytes(most: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    text = gallery.webp(Image.fromarray(noise), 320, most, "smile:2")
    assert len(text) <= most
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert image.getexif()[0x010E] == "edited by dhr-batch: smile:2"
    assert max(image.size) < 320


def test_a_thumbnail_that_fits_keeps_its_size() -> None:
    text = gallery.webp(Image.new("RGB", (512, 512), "teal"), 320, 2200)
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (320, 320)


def test_pictures_are_read_as_they_are_needed(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = connect(make_run())
    reads: list[str] = []
    original = report_data._rows_of

    def watched(run: Any, table: str, *more: Any) -> Any:
        for record in original(run, table, *more):
            reads.extend([record["image_id"]] if table == "images" else [])
            yield record

    monkeypatch.setattr(report_data, "_rows_of", watched)
    first = next(report_data.rows(run, IDS))
    # The first picture of the next image ends the first one.
    assert reads == [IDS[0]] * (3 + len(EDITS)) + [IDS[1]]
    assert (len(first.pictures), len(first.edits)) == (3, len(EDITS))


def test_row_groups_without_a_chosen_image_are_not_read(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    groups: list[int] = []

    class Watched(pq.ParquetFile):
        def iter_batches(self, *arguments: Any, **options: Any) -> Any:
            groups.append(options["row_groups"])
            return super().iter_batches(*arguments, **options)

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    for part in (run / "images").iterdir():
        pq.write_table(pq.read_table(part), part, row_group_size=3)
    (row,) = report_data.rows(connect(run), [IDS[2]])
    assert len(row.pictures) == 3
    # One of the masks, and the two that hold six rows of the last image.
    assert groups == [[0], [1], [2]]


def test_images_without_pictures_keep_their_place(make_run: Callable[..., Path]) -> None:
    run = connect(make_run())
    asked = ["a first", IDS[0], "between", IDS[2], "a last"]
    rows = list(report_data.rows(run, asked))
    assert [row.image_id for row in rows] == asked
    assert [len(row.pictures) for row in rows] == [0, 3, 0, 3, 0]
    assert [len(row.edits) for row in rows] == [0, 3, 0, 3, 0]
