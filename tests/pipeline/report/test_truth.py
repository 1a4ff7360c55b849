"""Figures against the ground truth, from metrics of which the test knows the means."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dhr_batch.pipeline.report import summaries, truth
from dhr_batch.pipeline.report.data import RunData
from dhr_batch.pipeline.report.metrics import of_truth
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.stats.bootstrap import estimate

SHARES = {"0.png": 0.06, "1.png": 0.15, "2.png": 0.25, "3.png": 0.4}


def rows(pairs: bool = True) -> pd.DataFrame:
    found = []
    for n, (name, share) in enumerate(SHARES.items()):
        found += [
            (name, "inverted", "truth_occluded", share),
            (name, "inverted", "truth_mask_iou", n / 4),
            (name, "inverted", "truth_psnr", 20.0),
            (name, "refined", "truth_psnr", 30.0 + n),
            (name, "refined", "psnr", 99.0),
        ]
        if pairs:
            twin = name.replace(".png", "-clean.png")
            found += [
                (twin, "inverted", "truth_occluded", 0.0),
                (twin, "inverted", "truth_psnr", 20.0),
                (twin, "refined", "truth_psnr", 32.0),
            ]
    table = pd.DataFrame(found, columns=["image_id", "stage", "metric", "value"])
    return table.assign(model="m").astype({"stage": "category", "metric": "category"})


def find(figures: list[truth.Figure], *key: str) -> truth.Figure:
    (found,) = [f for f in figures if (f.picture, f.stage, f.metric) == key]
    return found


def test_means_and_means_by_share() -> None:
    found = truth.figures(rows())
    iou = find(found, "occluded", "inverted", "truth_mask_iou")
    assert iou.mean == pytest.approx(0.375)
    assert iou.by_share == (0, 0.25, 0.5, 0.75)
    assert iou.n == 4
    assert iou.low < iou.mean < iou.high
    assert {f.metric for f in found} == {"truth_mask_iou", "truth_psnr"}


def test_the_difference_is_of_the_same_face() -> None:
    found = truth.figures(rows())
    both = find(found, "difference", "refined", "truth_psnr")
    assert both.by_share == (-2, -1, 0, 1)
    assert both.mean == pytest.approx(-0.5)
    nothing = find(found, "difference", "inverted", "truth_psnr")
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)
    assert find(found, truth.CLEAN, "refined", "truth_psnr").mean == 32
    assert {f.picture for f in truth.figures(rows(pairs=False))} == {"occluded"}


def test_an_interval_is_that_of_the_mean() -> None:
    found = find(truth.figures(rows()), "occluded", "refined", "truth_psnr")
    expected = estimate([30, 31, 32, 33])
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_single_picture_has_no_interval() -> None:
    plain = rows()
    one = truth.figures(plain[plain["image_id"].isin(["0.png", "0-clean.png"])])
    assert {f.n for f in one} == {1}
    assert {(f.low, f.high) for f in one} == {(None, None)}


def test_an_exact_copy_counts_neither_in_figures_nor_in_plots() -> None:
    plain = rows(pairs=False)
    copied = (plain["metric"] == "truth_psnr") & (plain["stage"] == "refined")
    plain.loc[copied & (plain["image_id"] == "0.png"), "value"] = np.inf
    found = find(truth.figures(plain), "occluded", "refined", "truth_psnr")
    assert (found.mean, found.n) == (32, 3)
    section = truth.section(data(plain))
    assert section is not None
    (plot,) = [p for p in section.plots if p.title.startswith("PSNR")]
    assert plot.means["refined"] == "32.00"


def data(metrics: pd.DataFrame) -> RunData:
    return RunData("run", StoredPlan(), list(SHARES), metrics, [], {})


def test_the_report_has_a_section_where_there_is_a_truth() -> None:
    section = truth.section(data(rows()))
    assert section is not None
    assert [plot.title for plot in section.plots] == [
        "Occluder found: IoU",
        "PSNR [dB], uncovered face",
    ]
    (table,) = section.tables
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert truth.CLEAN in section.plots[1].svg
    lines = truth.markdown(rows())
    assert any("Occluder found: IoU | 0.375 (" in line for line in lines)
    plain = of_truth(rows(), False)
    assert truth.section(data(plain)) is None
    assert truth.markdown(plain) == []


def test_methods_are_compared_by_share() -> None:
    better = rows()
    better.loc[better["stage"] == "refined", "value"] += 1
    table = truth.table(truth.compared({"a": rows(), "b": better}))
    assert table is not None
    means = {tuple(row[:3]): row[3] for row in table.rows}
    psnr = "PSNR [dB], uncovered face"
    assert means == {
        (psnr, "occluded", "a"): 31.5,
        (psnr, "occluded", "b"): 32.5,
        (psnr, truth.CLEAN, "a"): 32,
        (psnr, truth.CLEAN, "b"): 33,
        (psnr, "difference", "a"): -0.5,
        (psnr, "difference", "b"): -0.5,
    }
    assert [row[2] for row in table.rows] == ["a", "b"] * 3
    nothing = truth.compared({"a": of_truth(rows(), False)})
    assert (nothing, truth.table(nothing)) == ([], None)


def test_methods_are_compared_on_the_pictures_that_all_have() -> None:
    plain = rows(pairs=False)
    refined, psnr = plain["stage"] == "refined", plain["metric"] == "truth_psnr"
    lacks = plain[~(refined & psnr & (plain["image_id"] == "3.png"))]
    endless = plain.copy()
    endless.loc[refined & psnr & (plain["image_id"] == "0.png"), "value"] = np.inf
    table = truth.table(truth.compared({"a": plain, "b": lacks, "c": endless}))
    assert table is not None
    assert [(row[2], row[3], row[-1]) for row in table.rows] == [
        (name, 31.5, 2) for name in ("a", "b", "c")
    ]
    without = plain[~(refined & psnr)]
    table = truth.table(truth.compared({"a": plain, "measured otherwise": without}))
    assert table is not None
    assert [(row[2], row[-1]) for row in table.rows] == [("a", 4)]


def test_the_averages_of_all_runs_are_without_it() -> None:
    assert summaries.summary(data(rows()))["metric"].tolist() == ["psnr"]
