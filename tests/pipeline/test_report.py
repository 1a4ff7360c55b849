"""The report of a run that the test writes itself, with ids made to break pages."""

from __future__ import annotations

import base64
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
    plan_file,
    report,
    report_data,
    report_tables,
    schemas,
    tables,
)
from dhr_batch.pipeline.storage import connect

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
        plan = {"config": {"generator": generator, "embed": {"name": "w+", "steps": 60}}, "seed": 0}
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
        (run / "_state" / "shards").mkdir(parents=True)
        manifest = {"models": ["mobilestylegan-ffhq", "a model since removed"]}
        (run / "_state" / "shards" / "00000.json").write_text(json.dumps(manifest), "utf-8")
        _table(run, "images", images)
        _table(run, "masks", masks)
        _table(run, "metrics", metrics)
        _quarantine(run)
        return run

    return make


def test_page_is_self_contained_and_names_every_image(make_run: Callable[..., Path]) -> None:
    page = write(make_run())
    text = page.read_text("utf-8")
    assert page == page.parent.parent / "report" / "index.html"
    for needle in ("people/anna.jpg", "people/büşra 東.png", "no_face", "config.embed.steps"):
        assert needle in text
    assert not re.search(r"https?:|//[a-z0-9-]+\.|@import|url\(", text)
    assert len(re.findall(r'<img src="data:image/webp', text)) == len(IDS) * (4 + len(EDITS))
    pictures = re.findall(r'<img src="data:image/webp;base64,([^"]+)"', text)
    marked = [p for p in pictures if b"edited by dhr-batch" in base64.b64decode(p)]
    assert len(marked) == len(IDS) * len(EDITS)
    assert all('alt="' in tag for tag in re.findall(r"<img [^>]*>", text))
    assert "Apache-2.0 as published" in text
    assert "random weights" not in text


def test_hostile_ids_are_escaped_everywhere(make_run: Callable[..., Path]) -> None:
    page = write(make_run())
    text = page.read_text("utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;|`.png" in text
    assert "<b>x</b>" not in text
    assert "<script>" not in (page.parent / "metrics.md").read_text("utf-8")


def test_csv_is_wide_and_marks_almost_all_out_masks(make_run: Callable[..., Path]) -> None:
    run = make_run()
    table = pd.read_csv(write(run).parent / "metrics.csv", keep_default_na=False)
    assert len(table) == len(IDS) * (2 + len(EDITS))
    assert list(table["stage"][:3]) == ["inverted", "refined", "edit:smile:-2"]
    assert list(table.columns[4:6]) == ["psnr", "psnr_in"]
    shares = table.groupby("image_id")["in_domain_face"].first()
    np.testing.assert_allclose([shares[i] for i in IDS], [1.0, 0.75, 0.0], atol=1e-9)
    assert dict(zip(table["image_id"], table["counted"], strict=True)) == {
        IDS[0]: "yes",
        IDS[1]: "yes",
        IDS[2]: "no",
    }


def test_summary_leaves_out_what_does_not_count(make_run: Callable[..., Path]) -> None:
    data = report_data.load(connect(make_run()), 40)
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


def test_contact_sheet_has_the_planned_size(make_run: Callable[..., Path]) -> None:
    sheet = Image.open(write(make_run()).parent / "contact_sheet.png")
    sheet.load()
    assert sheet.size == contact_sheet.size(len(IDS), 4 + len(EDITS))
    x = contact_sheet.MARGIN + contact_sheet.CELL // 2
    y = contact_sheet.HEAD + contact_sheet.LABELS + contact_sheet.CELL - 20
    expected = np.asarray(Image.open(io.BytesIO(_portrait(0))))[-6, 32]
    np.testing.assert_allclose(sheet.convert("RGB").getpixel((x, y)), expected, atol=8)


def test_contact_sheet_keeps_the_outermost_strengths() -> None:
    edits = [report_data.Edited(n, s, b"") for n in "ab" for s in (-2.0, -1.0, 1.0, 2.0)]
    heads = contact_sheet.columns([report_data.Row("x", edits=edits)], max_edits=4)
    assert [label for label, _ in heads[4:]] == ["a -2", "a +2", "b -2", "b +2"]


def test_overlay_tints_only_the_out_of_domain_part() -> None:
    image = Image.fromarray(np.full((8, 8, 3), 100, np.uint8))
    inside = np.zeros((8, 8), np.uint8)
    inside[:4] = 255
    result = np.asarray(report_data.overlay(image, Image.fromarray(inside)))
    assert (result[:4] == 100).all()
    assert (result[4] == 255).all()
    assert (result[5:] != 100).any(-1).all()


def test_shown_images_are_limited_and_counted(make_run: Callable[..., Path]) -> None:
    run = make_run()
    text = write(run, max_images=1).read_text("utf-8")
    assert "1 of 3 shown" in text
    assert text.count("<article>") == 1
    table = pd.read_csv(run / "report" / "metrics.csv")
    assert table["image_id"].nunique() == 3


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
    assert "people/anna.jpg" in write(run).read_text("utf-8")


def test_random_weights_are_said(make_run: Callable[..., Path]) -> None:
    page = write(make_run(generator="tiny"))
    assert "<strong>random weights</strong>" in page.read_text("utf-8")
    assert "random weights" in (page.parent / "metrics.md").read_text("utf-8")


def test_random_weights_are_seen_in_the_metrics_too(make_run: Callable[..., Path]) -> None:
    run = make_run()
    for part in (run / "metrics").iterdir():
        table = pq.read_table(part)
        model = pa.array(["tiny, random weights"] * len(table))
        column = table.schema.get_field_index("model")
        pq.write_table(table.set_column(column, "model", model), part)
    assert report_data.load(connect(run), 40).random_weights


def test_many_metrics_take_little_memory(tmp_path: Path) -> None:
    ids, names = [f"people/{n:060}.png" for n in range(200)], [f"metric_{n}" for n in range(50)]
    rows = [
        {"image_id": i, "stage": "refined", "metric": m, "value": 0.5, "model": "dlib"}
        for i in ids
        for m in names
    ]
    (tmp_path / "plan.json").write_text("{}", "utf-8")
    _table(tmp_path, "metrics", rows)
    data = report_data.load(connect(tmp_path), 40)
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
    assert text.index('<td>no_face</td><td class="n">3</td>') < text.index("<td>crash</td>")
    assert 'width="120.0"' in text
    assert 'width="40.0"' in text


def test_throughput_leaves_pauses_out(make_run: Callable[..., Path]) -> None:
    run = make_run()
    # Ten minutes at 0.1 images/s, a night, ten minutes at 0.3 images/s.
    first = [[1000.0 + 10 * n, n] for n in range(61)]
    points = first + [[50_000.0 + 10 * n, 60 + 3 * n] for n in range(61)]
    card = report_tables.throughput(points)
    assert card is not None
    assert card.means == {"rate": "0.200 images/s"}
    assert card.histogram.ticks == ("0 s", "20 min 00 s")
    assert card.histogram.top == "0.300 images/s"
    heights = [bar.height for bar in card.histogram.bars]
    assert heights[0] == pytest.approx(58 / 3, abs=0.1)
    assert heights[-1] == pytest.approx(58, abs=0.1)
    assert "Throughput" not in write(run).read_text("utf-8")
    (run / "_state" / "status.json").write_text(json.dumps({"throughput": points}))
    page = write(run)
    assert "Throughput" in page.read_text("utf-8")
    assert "0.200 images/s over 20 min" in (page.parent / "metrics.md").read_text("utf-8")


@pytest.mark.parametrize("points", [[], [[1.0, 5]], [[1.0, 5], [1.0, 9]], [[1.0, 5], [9.0, 5]]])
def test_no_throughput_without_progress(points: list[list[float]]) -> None:
    assert report_tables.throughput(points) is None


def test_pictures_that_are_not_shown_are_not_read(make_run: Callable[..., Path]) -> None:
    """Those of a part without any shown image are damaged here, and nobody notices."""
    run = make_run()
    path = sorted((run / "images").glob("part-*.parquet"))[-1]
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = (group.column(index) for index in range(group.num_columns))
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == "image.bytes")
    content = bytearray(path.read_bytes())
    start, length = chunk.dictionary_page_offset, chunk.total_compressed_size
    content[start : start + length] = b"\xff" * length
    path.write_bytes(content)
    first = report_data.load(connect(run), max_images=1).rows
    assert [row.image_id for row in first] == IDS[:1]
    with pytest.raises(report_data.ReportError, match="images"):
        report_data.load(connect(run), max_images=3)


def test_a_plan_as_it_is_stored_is_counted_in_the_settings(make_run: Callable[..., Path]) -> None:
    run = make_run()
    plan = json.loads((run / "plan.json").read_text()) | {
        "shards": [IDS[:2], IDS[2:]],
        "contents": [[1, 2], [3]],
    }
    (run / "plan.json").write_bytes(plan_file.dumps(plan))
    page = write(run).read_text("utf-8")
    assert re.search(r"shards</\w+>\s*<\w+[^>]*>2 entries<", page)
