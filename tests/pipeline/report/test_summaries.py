"""The numbers of a report: tables, failures, speed, and what edits achieve."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dhr_batch.pipeline.report import data as report_data
from dhr_batch.pipeline.report import page as report_page
from dhr_batch.pipeline.report import sections, summaries
from dhr_batch.pipeline.report.metrics import metric_key, title
from dhr_batch.pipeline.report.write import markdown
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.units import number
from dhr_batch.tests.pipeline.reported import EDITS, IDS, table_of, write


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
    table = summaries.summary(data).set_index(["stage", "metric"])
    psnr = table.loc[("refined", "psnr")]
    assert (psnr["mean"], psnr["median"], psnr["min"], psnr["max"]) == (28.5, 28.5, 28.0, 29.0)
    assert psnr["n"] == 2
    everything = summaries.summary(data, everything=True).set_index(["stage", "metric"])
    assert everything.loc[("refined", "psnr"), "n"] == 3
    assert table.loc[("inverted", "identity_dlib_distance"), "model"] == "dlib-face-resnet"
    text = markdown(data)
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
    assert "Distances between sets" not in markdown(report_data.load(connect(run)))
    table_of(run, "features", rows)
    data = report_data.load(connect(run))
    assert data.excluded() == IDS[2:]
    first, second = data.distances
    assert (first.stage, first.metric, first.n) == ("refined", "fid", 2)
    text, page = markdown(data), write(run).read_text("utf-8")
    model = "inception-2015-12-05; generator=mobilestylegan-256"
    assert f"| refined | fid | {first.value:.4g} | 2 | {model} |" in text
    assert re.search(rf"<td[^>]*>KID</td>\s*<td[^>]*>{second.value:.4g}</td>", page)


def test_titles_name_size_and_part() -> None:
    assert title("psnr_1024_in") == "PSNR [dB] at 1024 px, in-domain"
    assert title("ms_ssim_out") == "MS-SSIM, out-of-domain"
    assert title("identity_facenet_cosine") == "Identity cosine (FaceNet)"
    assert title("change_in") == "Change from the refined picture, in-domain"
    names = ["change_in", "ssim", "psnr_1024_in", "psnr_in", "psnr_1024", "psnr", "ms_ssim"]
    assert sorted(names, key=metric_key) == [
        *("psnr", "psnr_in", "psnr_1024", "psnr_1024_in", "ssim", "ms_ssim", "change_in"),
    ]


def test_many_metrics_take_little_memory(tmp_path: Path) -> None:
    ids, names = [f"people/{n:060}.png" for n in range(200)], [f"metric_{n}" for n in range(50)]
    rows = [
        {"image_id": i, "stage": "refined", "metric": m, "value": 0.5, "model": "dlib"}
        for i in ids
        for m in names
    ]
    (tmp_path / "plan.json").write_text('{"config": {}, "shards": []}', "utf-8")
    table_of(tmp_path, "metrics", rows)
    data = report_data.load(connect(tmp_path))
    assert (len(data.metrics), data.image_ids) == (len(rows), ids)
    assert data.metrics.memory_usage(deep=True).sum() < 40 * len(rows)
    assert len(summaries.wide(data)) == len(ids)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(28.456, "28.46"), (0.1234, "0.123"), (5e-6, "5.00e-06"), (None, "–"), (float("inf"), "∞")],
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert number(value) == shown


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
    table_of(run, "quarantine", rows)
    page = write(run)
    text, markdown = page.read_text("utf-8"), (page.parent / "metrics.md").read_text("utf-8")
    assert "| no_face | 3 | 0.png | 0 \\| no_face |" in markdown
    assert "| crash | 1 | 1.png | 1 \\| crash |" in markdown
    rows = re.findall(r'<td>(\w+)</td><td class="n" data-value="(\d+)">', text)
    assert rows[:2] == [("no_face", "3"), ("crash", "1")]
    failures = text.partition('id="failures"')[2]
    widths = re.findall(r'width="([\d.]+)" height="16.0"', failures)
    assert float(widths[0]) == pytest.approx(3 * float(widths[1]), abs=0.2)


def test_throughput_leaves_pauses_out(make_run: Callable[..., Path]) -> None:
    run = make_run()
    # Ten minutes at 0.1 images/s, a night, ten minutes at 0.3 images/s.
    first = [[1000.0 + 10 * n, n] for n in range(61)]
    points = first + [[50_000.0 + 10 * n, 60 + 3 * n] for n in range(61)]
    speed = summaries.throughput(points)
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
    assert summaries.throughput(points) is None


def test_seconds_are_those_of_the_shard(make_run: Callable[..., Path]) -> None:
    data = report_data.load(connect(make_run()))
    # 33 and 99 s for two images that were computed, beside one that was not; for one image.
    assert summaries.seconds_per_image(data, "embed") == {IDS[0]: 16.5, IDS[1]: 16.5, IDS[2]: 33}
    assert summaries.seconds_per_image(data, "refine") == {IDS[0]: 49.5, IDS[1]: 49.5, IDS[2]: 99}
    assert summaries.seconds_per_image(data, "edit") == {}
    refine = summaries.stage_seconds(data)[-1]
    assert refine == summaries.StageSeconds("refine", 40, 3, 120)


def test_the_effect_of_an_edit_is_against_the_source(
    make_run: Callable[..., Path],
) -> None:
    data = report_data.load(connect(make_run()))
    table = summaries.edit_effects(data, "smile", "identity_dlib_distance")
    # The third image does not count.
    assert list(table["image_id"]) == [IDS[0]] * 3 + [IDS[1]] * 3
    assert list(table["strength"]) == [-2, 0, 2] * 2
    np.testing.assert_allclose(table["effect"], [-0.05, 0.05, 0.35] * 2)
    np.testing.assert_allclose(table["identity"], [0.3] * 3 + [0.4] * 3)
    assert summaries.edit_effects(data, "yaw", "identity_dlib_distance")["effect"].isna().all()


def test_every_strength_has_its_effect_and_its_cost(
    make_run: Callable[..., Path],
) -> None:
    data = report_data.load(connect(make_run()))
    nothing = report_page.Gallery("", [], [], [])
    section = next(s for s in sections.page(data, nothing).sections if s.key == "edits")
    (table,) = section.tables
    assert [c.title for c in table.columns[:4]] == ["edit", "strength", "images", "effect"]
    rows = {(row[0], row[1]): row for row in table.rows}
    assert rows["smile", 2.0][2] == 2
    assert rows["smile", 2.0][3] == report_page.Shown(pytest.approx(0.35), "0.350 [0.350, 0.350]")
    assert rows["smile", 2.0][4].text.startswith("0.350 [0.300, 0.400]")
    assert rows["yaw", 1.5][3].text == "–"


def test_costs_of_edits_are_told_without_identity(make_run: Callable[..., Path]) -> None:
    data = report_data.load(connect(make_run()))
    without = data.metrics[~data.metrics["metric"].astype(str).str.startswith("identity_")]
    nothing = report_page.Gallery("", [], [], [])
    page = sections.page(replace(data, metrics=without), nothing)
    (section,) = [s for s in page.sections if s.key == "edits"]
    (table,) = section.tables
    assert {(row[0], row[1]) for row in table.rows} >= {("smile", 2.0), ("yaw", 1.5)}
    assert not section.plots


def test_side_effects_stand_below_the_effects(make_run: Callable[..., Path]) -> None:
    data = report_data.load(connect(make_run()))
    ages = {"source": 40.0, "refined": 41.0, "edit:smile:-2": 43.0, "edit:smile:2": 38.0}
    rows = [(i, s, "score_age", age, "ages") for i in IDS for s, age in ages.items()]
    added = pd.DataFrame(rows, columns=["image_id", "stage", "metric", "value", "model"])
    data = replace(data, metrics=pd.concat([data.metrics, added]))
    page = sections.page(data, report_page.Gallery("", [], [], []))
    (section,) = [s for s in page.sections if s.key == "edits"]
    table = section.tables[1]
    assert table.title.startswith("Side effects at the effect that 80% of the images reach")
    heads = [column.title for column in table.columns]
    down, up = (dict(zip(heads, row, strict=True)) for row in table.rows)
    assert up["effect"] == report_page.Shown(pytest.approx(0.35), "0.350")
    assert (up["images"], up["effect by another judge"].text) == (2, "own teacher")
    assert '<td class="n " data-value="">own teacher</td>' in "".join(report_page.render(page))
    assert up["Score: age [years]"].text == "-2.000 (2.000)"
    assert down["Score: age [years]"].text == "3.000 (3.000)"
    assert "Identity distance (dlib)" in heads

    # The same changes, as another judge would see them.
    seen = data.metrics.replace({"metric": {"score_age": "score_happy"}})
    page = sections.page(replace(data, metrics=seen), report_page.Gallery("", [], [], []))
    (section,) = [s for s in page.sections if s.key == "edits"]
    _, up = (dict(zip(heads, row, strict=False)) for row in section.tables[1].rows)
    assert up["effect by another judge"] == report_page.Shown(-2, "happy -2.000")


def test_an_exact_copy_does_not_make_a_mean_infinite(make_run: Callable[..., Path]) -> None:
    data = report_data.load(connect(make_run()))

    def refined(table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["stage"] == "refined") & (table["metric"] == "psnr")]

    first = refined(data.metrics).index[0]
    others = refined(data.metrics).drop(first)
    counted = others[~others["image_id"].isin(data.excluded())]
    metrics = data.metrics.copy()
    metrics.loc[first, "value"] = np.inf
    data = replace(data, metrics=metrics)
    (row,) = refined(summaries.summary(data)).to_dict("records")
    assert row["mean"] == pytest.approx(counted["value"].mean())
    assert row["n"] == len(counted)
    page = sections.page(data, report_page.Gallery("", [], [], []))
    plots = [plot for s in page.sections if s.key == "metrics" for plot in s.plots]
    (plot,) = [plot for plot in plots if plot.title == "PSNR [dB]"]
    assert plot.means["refined"] == number(row["mean"])
