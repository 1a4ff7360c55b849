"""The page of a report, of a run that the test writes itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dhr_batch.pipeline.errors import CommandError, NoRun
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.report import contact_sheet, provenance
from dhr_batch.pipeline.report import data as report_data
from dhr_batch.pipeline.report.write import write_report
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.tables import schemas
from dhr_batch.tests.pipeline.chromium import Chromium
from dhr_batch.tests.pipeline.reported import EDITS, HOSTILE, IDS, names, quarantine, write


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


def test_hostile_ids_are_escaped_everywhere(make_run: Callable[..., Path]) -> None:
    page = write(make_run())
    text = page.read_text("utf-8")
    assert "<script>alert" not in text
    assert names(page)[2] == HOSTILE
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>x</b>" not in text
    assert "<script>" not in (page.parent / "metrics.md").read_text("utf-8")


def test_a_run_in_an_object_store(make_run: Callable[..., Path], bucket: str) -> None:
    local, run = make_run(), connect(f"{bucket}/my run")
    for path in [p for p in local.rglob("*") if p.is_file()]:
        run.replace(path.relative_to(local).as_posix(), path.read_bytes())
    assert write_report(f"{bucket}/my run") == f"{bucket}/my run/report/index.html"
    for name in ("index.html", "metrics.md", "metrics.csv", "contact_sheet.png"):
        assert run.read(f"report/{name}") == (write(local).parent / name).read_bytes()


def test_the_markdown_begins_with_the_means_before_and_after(make_run: Callable[..., Path]) -> None:
    lines = (write(make_run()).parent / "metrics.md").read_text("utf-8").splitlines()
    assert lines[2:6] == [
        "|  | PSNR | PSNR in-domain | identity distance (dlib) |",
        "|---|---|---|---|",
        "| embedding (`w+`, 60 steps) | 18.50 dB | 20.00 dB | 0.350 |",
        "| refined | 28.50 dB | 20.00 dB | 0.350 |",
    ]
    assert "| refine | 40.00 | 61% | 3 | 120.00 |" in lines
    assert "| all stages | 66.00 | 100% | 3 | 198.00 |" in lines


def test_the_pictures_come_first(make_run: Callable[..., Path]) -> None:
    text = write(make_run()).read_text("utf-8")
    assert re.findall(r'<section id="(\w+)"', text)[:2] == ["images", "metrics"]
    assert "Seconds of a worker per image, by stage" in text


def test_run_without_edits(make_run: Callable[..., Path]) -> None:
    page = write(make_run(edits=[]))
    assert "edit:" not in page.read_text("utf-8")
    assert Image.open(page.parent / "contact_sheet.png").size == contact_sheet.size(len(IDS), 4)


def test_run_that_only_quarantined(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"config": {}, "shards": []}')
    quarantine(tmp_path)
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


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="it is not a run"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_table_is_named(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "metrics" / "part-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(CommandError, match="table 'metrics'"):
        write(run)


def test_the_contact_sheet_has_letters_beyond_ascii() -> None:
    for bold in (False, True):
        font = contact_sheet._font(14, bold)
        drawn = {bytes(font.getmask(letter)) for letter in "üşЖΩ∞–…·\U000f0000"}
        assert len(drawn) == 9, "letters that a font lacks are drawn as one box"


def test_the_settings_make_the_run_again(tmp_path: Path) -> None:
    """What the page says to save is taken by `run -c`, and gives the same plan."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (8, 8)).save(photographs / "a.png")
    asked = {"dataset": str(photographs), "preset": "tiny", "gpus": 0}
    planned = prepare(Request(settings=asked, sets=["embed.steps=7"])).stored()
    data = report_data.RunData("run", planned, [], pd.DataFrame(), [], {})
    section = provenance.settings(data)
    assert section is not None
    assert section.code is not None
    file = tmp_path / "settings.yaml"
    file.write_text(section.code[1], "utf-8")
    assert prepare(Request(files=[file])).stored() == planned


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
        assert "inverted 16.50, 18.50, refined 49.50, 28.50" in found["PSNR against seconds"]
        assert found["yaw"].startswith("Identity distance (dlib) against strength")
        assert found["Failures by class"] == "Failures by class. no_face: 1"
        assert found["Throughput"].endswith("from 0.100 to 0.100")
        assert browser.run("document.querySelectorAll('#gallery .rows > *').length") == len(IDS)
        images = "[...document.querySelectorAll('#gallery img')]"
        assert browser.run(f"Promise.all({images}.map(i => i.decode())).then(() => true)")
        assert browser.run(f"{images}.length") == len(IDS) * (4 + len(EDITS))
        assert browser.errors == []
