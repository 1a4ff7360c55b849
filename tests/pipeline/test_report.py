"""The report of a run that the test writes itself, with ids made to break pages."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dhr_batch.pipeline import (
    contact_sheet,
    report,
    report_data,
    report_gallery,
    report_page,
    report_provenance,
    report_sections,
    report_tables,
    schemas,
    tables,
)
from dhr_batch.pipeline.prepare import Request, prepare
from dhr_batch.pipeline.storage import connect
from dhr_batch.tests.pipeline.chromium import Chromium

HOSTILE = '<script>alert(1)</script>"|`.png'
IDS = ["people/anna.jpg", "people/büşra 東.png", HOSTILE]
EDITS = [("smile", -2.0), ("smile", 2.0), ("yaw", 1.5)]


def write(*arguments: Any, **options: Any) -> Path:
    return Path(report.write(*arguments, **options))


def _portrait(seed: int, size: int = 64) -> bytes:
    base = np.random.default_rng(seed).integers(0, 255, 3)
    ramp = np.linspace(0, 1, size)[:, None, None]
    return tables.png(np.broadcast_to(base * ramp, (size, size, 3)).astype(np.uint8))


def _labels() -> np.ndarray:
    labels = np.zeros((64, 64), np.uint8)
    labels[16:48, 16:48] = 2
    labels[20:24, 20:28] = 8
    labels[:16] = 14
    return labels


def _table(run: Path, name: str, rows: list[dict]) -> None:
    """Write a table in two parts, split anywhere: readers may not rely on where a part ends."""
    (run / name).mkdir()
    half = (len(rows) + 1) // 2
    for part, chunk in enumerate((rows[:half], rows[half:])):
        filled = [{"shard": part, **row} for row in chunk]
        table = pa.Table.from_pylist(filled, schema=schemas.schema(name, rows=8))
        pq.write_table(table, run / name / f"part-{part:05}.parquet")


def _quarantine(run: Path) -> None:
    _table(
        run,
        "quarantine",
        [
            {
                "image_id": "bad/<b>x</b>.png",
                "source": "bad/<b>x</b>.png",
                "stage": "align",
                "error_class": "no_face",
                "message": "no face in bad/<b>x</b>.png; use a picture that shows one",
            }
        ],
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(edits: list[tuple[str, float]] = EDITS, generator: str = "mobilestylegan-256") -> Path:
        run = tmp_path / "my run"
        run.mkdir()
        plan = {
            "config": {"generator": generator, "embed": {"name": "w+", "steps": 60}},
            "fingerprint": {"models": {"mobilestylegan-ffhq": "0123456789abcdef"}},
            "versions": {"python": "3.99.0"},
            "shards": [IDS[:2], IDS[2:]],
        }
        (run / "plan.json").write_text(json.dumps(plan), "utf-8")
        images, masks, metrics = [], [], []
        for n, image_id in enumerate(IDS):
            kinds = [("aligned", None, None), ("inverted", None, None), ("refined", None, None)]
            for m, (kind, name, strength) in enumerate(kinds + [("edit", *e) for e in edits]):
                images.append(
                    {
                        "image_id": image_id,
                        "kind": kind,
                        "image": {"bytes": _portrait(10 * n + m), "path": f"{n}_{m}.png"},
                        "edit_name": name,
                        "edit_strength": strength,
                    }
                )
            mask = np.ones((64, 64), bool)
            mask[: 16 + 8 * n * n] = False
            for kind, data in (("in_domain", tables.png(mask)), ("labels", tables.png(_labels()))):
                row = {"image_id": image_id, "kind": kind, "mask": {"bytes": data, "path": kind}}
                masks.append({**row, "area_fraction": float(mask.mean())})
            metrics.append(
                {
                    "image_id": image_id,
                    "stage": "source",
                    "metric": "score_smile",
                    "value": 0.45,
                    "model": "dlib-landmarks68",
                }
            )
            stages = ["inverted", "refined"] + [f"edit:{name}:{s:g}" for name, s in edits]
            for k, stage in enumerate(stages):
                values = {"psnr": 18.0 + 10 * (k == 1) + n, "psnr_in": 20.0, "ssim": 0.5 + k / 9}
                metrics += [
                    {"image_id": image_id, "stage": stage, "metric": m, "value": v, "model": "none"}
                    for m, v in values.items()
                ]
                metrics.append(
                    {
                        "image_id": image_id,
                        "stage": stage,
                        "metric": "identity_dlib_distance",
                        "value": 0.3 + n / 10,
                        "model": "dlib-face-resnet",
                    }
                )
                if "yaw" not in stage:
                    score = {"refined": 0.5, "edit:smile:2": 0.8}.get(stage, 0.4)
                    row = {"image_id": image_id, "stage": stage, "metric": "score_smile"}
                    metrics.append({**row, "value": score, "model": "dlib-landmarks68"})
        (run / "_state" / "shards").mkdir(parents=True)
        for shard, count in enumerate((2, 1)):
            manifest = {
                "models": ["mobilestylegan-ffhq", "a model since removed"],
                "ok": count,
                "quarantined": 1 - shard,
                "stage_seconds": {"align": 3, "embed": 30, "segment": 6, "refine": 60},
            }
            (run / "_state" / "shards" / f"0000{shard}.json").write_text(json.dumps(manifest))
        _table(run, "images", images)
        _table(run, "masks", masks)
        _table(run, "metrics", metrics)
        _quarantine(run)
        return run

    return make


def embedded(page: Path) -> tuple[dict[str, Any], list[list[bytes | None]]]:
    """The data of the gallery, and the pictures of each of its items."""
    text = page.read_text("utf-8")
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', text)
    content = {name: json.loads(data) for name, data in found}
    gallery = content.pop("gallery-data", {"items": [], "scores": []})
    assert list(content) == [f"p{n}" for n in range(len(gallery["items"]))]
    rows = [[p if p is None else base64.b64decode(p) for p in row] for row in content.values()]
    return gallery, rows


def names(page: Path) -> list[str]:
    return [item[0] for item in embedded(page)[0]["items"]]


def test_page_is_self_contained_and_names_every_image(make_run: Callable[..., Path]) -> None:
    page = write(make_run())
    text = page.read_text("utf-8")
    assert page == page.parent.parent / "report" / "index.html"
    for needle in ("no_face", "steps: 60", "Apache-2.0 as published", "0123456789abcdef", "3.99.0"):
        assert needle in text
    assert not re.search(r"https?:|//[a-z0-9-]+\.[a-z]|@import|url\(", text)
    assert not re.search(r"<(?:img|script|link|iframe)[^>]* (?:src|href)=", text)
    assert names(page) == IDS
    assert "random weights" not in text


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
            expected = np.asarray(Image.open(io.BytesIO(_portrait(10 * n + m - (m > 3)))))
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


def test_hostile_ids_are_escaped_everywhere(make_run: Callable[..., Path]) -> None:
    page = write(make_run())
    text = page.read_text("utf-8")
    assert "<script>alert" not in text
    assert names(page)[2] == HOSTILE
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>x</b>" not in text
    assert "<script>" not in (page.parent / "metrics.md").read_text("utf-8")


def test_csv_is_wide_and_marks_almost_all_out_masks(make_run: Callable[..., Path]) -> None:
    run = make_run()
    table = pd.read_csv(write(run).parent / "metrics.csv", keep_default_na=False)
    assert len(table) == len(IDS) * (3 + len(EDITS))
    assert list(table["stage"][:3]) == ["source", "inverted", "refined"]
    assert list(table.columns[4:6]) == ["psnr", "psnr_in"]
    shares = table.groupby("image_id")["in_domain_face"].first()
    np.testing.assert_allclose([shares[i] for i in IDS], [1.0, 0.75, 0.0], atol=1e-9)
    assert dict(zip(table["image_id"], table["counted"], strict=True)) == {
        IDS[0]: "yes",
        IDS[1]: "yes",
        IDS[2]: "no",
    }


def test_summary_leaves_out_what_does_not_count(make_run: Callable[..., Path]) -> None:
    data = report_data.load(connect(make_run()))
    table = report_tables.summary(data).set_index(["stage", "metric"])
    psnr = table.loc[("refined", "psnr")]
    assert (psnr["mean"], psnr["median"], psnr["min"], psnr["max"]) == (28.5, 28.5, 28.0, 29.0)
    assert psnr["n"] == 2
    everything = report_tables.summary(data, everything=True).set_index(["stage", "metric"])
    assert everything.loc[("refined", "psnr"), "n"] == 3
    assert table.loc[("inverted", "identity_dlib_distance"), "model"] == "dlib-face-resnet"
    text = report.markdown(data)
    assert "Not counted" in text
    assert "| refined" in text


def test_sets_of_pictures_are_compared_without_those_that_do_not_count(
    make_run: Callable[..., Path],
) -> None:
    run = make_run()
    draw = np.random.default_rng(0)
    rows = [
        {
            "image_id": image_id,
            "kind": kind,
            "extractor": "inception",
            "feature": draw.standard_normal(4).astype(np.float32),
        }
        for image_id in IDS
        for kind in ("aligned", "refined")
    ]
    assert "Distances between sets" not in report.markdown(report_data.load(connect(run)))
    _table(run, "features", rows)
    data = report_data.load(connect(run))
    assert data.excluded() == IDS[2:]
    first, second = data.distances
    assert (first.stage, first.metric, first.n) == ("refined", "fid", 2)
    text, page = report.markdown(data), write(run).read_text("utf-8")
    model = "inception-2015-12-05; generator=mobilestylegan-256"
    assert f"| refined | fid | {first.value:.4g} | 2 | {model} |" in text
    assert re.search(rf"<td[^>]*>KID</td>\s*<td[^>]*>{second.value:.4g}</td>", page)


def test_titles_name_size_and_part() -> None:
    assert report_tables.title("psnr_1024_in") == "PSNR [dB] at 1024 px, in-domain"
    assert report_tables.title("ms_ssim_out") == "MS-SSIM, out-of-domain"
    assert report_tables.title("identity_facenet_cosine") == "Identity cosine (FaceNet)"
    assert report_tables.title("change_in") == "Change from the refined picture, in-domain"
    names = ["change_in", "ssim", "psnr_1024_in", "psnr_in", "psnr_1024", "psnr", "ms_ssim"]
    assert sorted(names, key=report_tables.metric_key) == [
        *("psnr", "psnr_in", "psnr_1024", "psnr_1024_in", "ssim", "ms_ssim", "change_in"),
    ]


def test_contact_sheet_has_the_planned_size(make_run: Callable[..., Path]) -> None:
    sheet = Image.open(write(make_run()).parent / "contact_sheet.png")
    sheet.load()
    assert sheet.size == contact_sheet.size(len(IDS), 4 + len(EDITS))
    x = contact_sheet.MARGIN + contact_sheet.CELL // 2
    y = contact_sheet.HEAD + contact_sheet.LABELS + contact_sheet.CELL - 20
    expected = np.asarray(Image.open(io.BytesIO(_portrait(0))))[-6, 32]
    np.testing.assert_allclose(sheet.convert("RGB").getpixel((x, y)), expected, atol=8)


def test_contact_sheet_keeps_the_outermost_strengths() -> None:
    edits = [(n, s) for n in "ab" for s in (-2.0, -1.0, 1.0, 2.0)]
    heads = contact_sheet.columns(edits, max_edits=4)
    assert [label for label, _ in heads[4:]] == ["a -2", "a +2", "b -2", "b +2"]


def test_overlay_tints_only_the_out_of_domain_part() -> None:
    image = Image.fromarray(np.full((8, 8, 3), 100, np.uint8))
    inside = np.zeros((8, 8), np.uint8)
    inside[:4] = 255
    result = np.asarray(report_data.overlay(image, Image.fromarray(inside)))
    assert (result[:4] == 100).all()
    assert (result[4] == 255).all()
    assert (result[5:] != 100).any(-1).all()


def test_a_sample_holds_the_worst_and_says_so(make_run: Callable[..., Path]) -> None:
    run = make_run()
    page = write(run, max_images=2)
    # The lowest PSNR and the greatest identity distance; the numbers are of all.
    data = report_data.load(connect(run))
    chosen, about = report_gallery.choose(data, 2)
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
    data = report_data.RunData("run", {}, ids, pd.DataFrame(rows), [], {})
    chosen, about = report_gallery.choose(data, 8)
    assert len(chosen) == 8
    assert chosen == sorted(chosen)
    assert {"007.png", "150.png", "099.png", "180.png"} <= set(chosen)
    assert "the 2 worst refined ones by each of PSNR [dB], Identity distance (dlib)" in about
    assert report_gallery.choose(data, 8) == (chosen, about)
    assert report_gallery.choose(data, 200) == (ids, "All 200 images.")


def test_a_page_takes_fewer_images_where_each_has_many_edits() -> None:
    assert report_gallery.capacity(10) == report_gallery.MAX_IMAGES
    assert report_gallery.capacity(100) == report_gallery.PAGE_BYTES // (100 * 2200)
    assert report_gallery.capacity(10**9) == 1


@pytest.mark.parametrize("most", [2200, 300])
def test_a_thumbnail_never_exceeds_its_bytes(most: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    text = report_gallery.webp(Image.fromarray(noise), 320, most, "smile:2")
    assert len(text) <= most
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert image.getexif()[0x010E] == "edited by dhr-batch: smile:2"
    assert max(image.size) < 320


def test_a_thumbnail_that_fits_keeps_its_size() -> None:
    text = report_gallery.webp(Image.new("RGB", (512, 512), "teal"), 320, 2200)
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (320, 320)


def test_pictures_are_read_as_they_are_needed(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = connect(make_run())
    reads: list[str] = []
    original = report_data._some_rows

    def watched(run: Any, table: str, *more: Any) -> Any:
        for record in original(run, table, *more):
            reads.extend([record["image_id"]] if table == "images" else [])
            yield record

    monkeypatch.setattr(report_data, "_some_rows", watched)
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

    monkeypatch.setattr(report_data.pq, "ParquetFile", Watched)
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


def test_a_run_in_an_object_store(make_run: Callable[..., Path], bucket: str) -> None:
    local, run = make_run(), connect(f"{bucket}/my run")
    for path in [p for p in local.rglob("*") if p.is_file()]:
        run.replace(path.relative_to(local).as_posix(), path.read_bytes())
    assert report.write(f"{bucket}/my run") == f"{bucket}/my run/report/index.html"
    for name in ("index.html", "metrics.md", "metrics.csv", "contact_sheet.png"):
        assert run.read(f"report/{name}") == (write(local).parent / name).read_bytes()


def test_run_without_edits(make_run: Callable[..., Path]) -> None:
    page = write(make_run(edits=[]))
    assert "edit:" not in page.read_text("utf-8")
    assert Image.open(page.parent / "contact_sheet.png").size == contact_sheet.size(len(IDS), 4)


def test_run_that_only_quarantined(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    _quarantine(tmp_path)
    page = write(tmp_path, tmp_path / "elsewhere")
    assert page == tmp_path / "elsewhere" / "index.html"
    text = page.read_text("utf-8")
    assert "no face in bad/&lt;b&gt;x&lt;/b&gt;.png" in text
    assert "No image was processed" in text
    assert pd.read_csv(page.parent / "metrics.csv").empty


@pytest.mark.parametrize("stored", [("metrics",), ("images", "metrics"), ("images",)])
def test_runs_that_store_less(make_run: Callable[..., Path], stored: tuple[str, ...]) -> None:
    run = make_run()
    for folder in [f for f in run.iterdir() if f.name in schemas.TABLES and f.name not in stored]:
        for part in folder.iterdir():
            part.unlink()
    assert names(write(run)) == IDS


def test_random_weights_are_said(make_run: Callable[..., Path]) -> None:
    page = write(make_run(generator="tiny"))
    assert 'role="note">random weights' in page.read_text("utf-8")
    assert "random weights" in (page.parent / "metrics.md").read_text("utf-8")


def test_random_weights_are_seen_in_the_metrics_too(make_run: Callable[..., Path]) -> None:
    run = make_run()
    for part in (run / "metrics").iterdir():
        table = pq.read_table(part)
        model = pa.array(["tiny, random weights"] * len(table))
        column = table.schema.get_field_index("model")
        pq.write_table(table.set_column(column, "model", model), part)
    assert report_data.load(connect(run)).random_weights


def test_many_metrics_take_little_memory(tmp_path: Path) -> None:
    ids, names = [f"people/{n:060}.png" for n in range(200)], [f"metric_{n}" for n in range(50)]
    rows = [
        {"image_id": i, "stage": "refined", "metric": m, "value": 0.5, "model": "dlib"}
        for i in ids
        for m in names
    ]
    (tmp_path / "plan.json").write_text("{}", "utf-8")
    _table(tmp_path, "metrics", rows)
    data = report_data.load(connect(tmp_path))
    assert (len(data.metrics), data.image_ids) == (len(rows), ids)
    assert data.metrics.memory_usage(deep=True).sum() < 40 * len(rows)
    assert len(report_tables.wide(data)) == len(ids)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(report_data.ReportError, match=r"is not a run.*dhr-batch run"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_table_is_named(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "metrics" / "part-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(report_data.ReportError, match="table 'metrics'"):
        write(run)


def test_missing_extra_says_what_to_install(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(report_data.ReportError, match=r"pip install 'dhr-batch\[report\]'"):
        write(make_run())


@pytest.mark.parametrize(
    ("value", "shown"),
    [(28.456, "28.46"), (0.1234, "0.123"), (5e-6, "5.00e-06"), (None, "–"), (float("inf"), "∞")],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert report_tables.number(value) == shown


def test_failures_are_counted_by_class_with_an_example(make_run: Callable[..., Path]) -> None:
    run = make_run()
    classes = ["no_face", "crash", "no_face", "no_face"]
    rows = [
        {
            "image_id": f"{n}.png",
            "stage": "align",
            "error_class": c,
            "message": f"{n} | {c}",
        }
        for n, c in enumerate(classes)
    ]
    for part in (run / "quarantine").iterdir():
        part.unlink()
    (run / "quarantine").rmdir()
    _table(run, "quarantine", rows)
    page = write(run)
    text, markdown = page.read_text("utf-8"), (page.parent / "metrics.md").read_text("utf-8")
    assert "| no_face | 3 | 0.png | 0 \\| no_face |" in markdown
    assert "| crash | 1 | 1.png | 1 \\| crash |" in markdown
    rows = re.findall(r'<td>(\w+)</td><td class="n" data-value="(\d+)">', text)
    assert rows[:2] == [("no_face", "3"), ("crash", "1")]
    widths = re.findall(r'width="([\d.]+)" height="16.0"', text)
    assert float(widths[0]) == pytest.approx(3 * float(widths[1]), abs=0.2)


def test_throughput_leaves_pauses_out(make_run: Callable[..., Path]) -> None:
    run = make_run()
    # Ten minutes at 0.1 images/s, a night, ten minutes at 0.3 images/s.
    first = [[1000.0 + 10 * n, n] for n in range(61)]
    points = first + [[50_000.0 + 10 * n, 60 + 3 * n] for n in range(61)]
    speed = report_tables.throughput(points)
    assert speed is not None
    assert speed.mean == pytest.approx(0.2)
    assert (speed.edges[0], speed.edges[-1]) == (0, 1200)
    assert speed.rates[0] == pytest.approx(0.1)
    assert speed.rates[-1] == pytest.approx(0.3)
    assert np.diff(speed.edges) @ speed.rates == pytest.approx(240)
    assert "Throughput" not in write(run).read_text("utf-8")
    (run / "_state" / "status.json").write_text(json.dumps({"throughput": points}))
    page = write(run)
    assert "Throughput" in page.read_text("utf-8")
    assert "0.200 images/s over 20 min" in (page.parent / "metrics.md").read_text("utf-8")


@pytest.mark.parametrize("points", [[], [[1.0, 5]], [[1.0, 5], [1.0, 9]], [[1.0, 5], [9.0, 5]]])
def test_no_throughput_without_progress(points: list[list[float]]) -> None:
    assert report_tables.throughput(points) is None


def test_seconds_are_those_of_the_shard(make_run: Callable[..., Path]) -> None:
    data = report_data.load(connect(make_run()))
    # 33 and 99 s for two images and one that was quarantined; for one image.
    assert report_tables.seconds_per_image(data, "embed") == {IDS[0]: 11, IDS[1]: 11, IDS[2]: 33}
    assert report_tables.seconds_per_image(data, "refine") == {IDS[0]: 33, IDS[1]: 33, IDS[2]: 99}
    assert report_tables.seconds_per_image(data, "edit") == {}


def test_the_effect_of_an_edit_is_against_the_source(
    make_run: Callable[..., Path],
) -> None:
    data = report_data.load(connect(make_run()))
    table = report_tables.edit_effects(data, "smile", "identity_dlib_distance")
    # The third image does not count.
    assert list(table["image_id"]) == [IDS[0]] * 3 + [IDS[1]] * 3
    assert list(table["strength"]) == [-2, 0, 2] * 2
    np.testing.assert_allclose(table["effect"], [-0.05, 0.05, 0.35] * 2)
    np.testing.assert_allclose(table["identity"], [0.3] * 3 + [0.4] * 3)
    assert report_tables.edit_effects(data, "yaw", "identity_dlib_distance")["effect"].isna().all()


def test_every_strength_has_its_effect_and_its_cost(
    make_run: Callable[..., Path],
) -> None:
    data = report_data.load(connect(make_run()))
    nothing = report_page.Gallery("", [], [], [])
    section = next(s for s in report_sections.page(data, nothing).sections if s.key == "edits")
    (table,) = section.tables
    assert [c.title for c in table.columns[:4]] == ["edit", "strength", "images", "effect"]
    rows = {(row[0], row[1]): row for row in table.rows}
    assert rows["smile", 2.0][2] == 2
    assert rows["smile", 2.0][3] == report_page.Shown(pytest.approx(0.35), "0.350 [0.350, 0.350]")
    assert rows["smile", 2.0][4].text.startswith("0.350 [0.300, 0.400]")
    assert rows["yaw", 1.5][3].text == "–"


def test_the_settings_make_the_run_again(tmp_path: Path) -> None:
    """What the page says to save is taken by `run -c`, and gives the same plan."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (8, 8)).save(photographs / "a.png")
    asked = {"dataset": str(photographs), "preset": "tiny", "gpus": 0}
    planned = prepare(Request(settings=asked, sets=["embed.steps=7"])).to_json()
    data = report_data.RunData("run", planned, [], pd.DataFrame(), [], {})
    section = report_provenance.settings(data)
    assert section is not None
    assert section.code is not None
    file = tmp_path / "settings.yaml"
    file.write_text(section.code[1], "utf-8")
    assert prepare(Request(files=[file])).to_json() == planned


def test_chromium_shows_the_report_of_a_run(make_run: Callable[..., Path]) -> None:
    run = make_run()
    points = [[1000.0 + 10 * n, n] for n in range(60)]
    (run / "_state" / "status.json").write_text(json.dumps({"throughput": points}))
    page = write(run)
    with Chromium() as browser:
        browser.open(page)
        browser.settle()
        plots = browser.run(
            "[...document.querySelectorAll('.cards:not(details .cards) figure')]"
            ".map(f => [f.querySelector('h3').textContent, f.querySelector('svg').ariaLabel])"
        )
        found = dict(plots)
        assert {"PSNR [dB]", "SSIM", "Identity distance (dlib)"} <= found.keys()
        # Means of the two images that count: effects and identity, seconds and dB.
        assert "-2 -0.050, 0.350, 0 0.050, 0.350, +2 0.350, 0.350" in found["smile"]
        assert "inverted 11.00, 18.50, refined 33.00, 28.50" in found["PSNR against seconds"]
        assert found["yaw"].startswith("Identity distance (dlib) against strength")
        assert found["Failures by class"] == "Failures by class. no_face: 1"
        assert found["Throughput"].endswith("from 0.100 to 0.100")
        assert browser.run("document.querySelectorAll('#gallery .rows > *').length") == len(IDS)
        images = "[...document.querySelectorAll('#gallery img')]"
        assert browser.run(f"Promise.all({images}.map(i => i.decode())).then(() => true)")
        assert browser.run(f"{images}.length") == len(IDS) * (4 + len(EDITS))
        assert browser.errors == []
