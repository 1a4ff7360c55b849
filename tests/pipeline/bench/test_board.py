"""The figures of a benchmark: means, differences, ranks and costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dhr_batch.pipeline.bench import page as bench_page
from dhr_batch.pipeline.bench import text as bench_text
from dhr_batch.pipeline.bench.board import BoardColumn, board
from dhr_batch.pipeline.bench.data import load
from dhr_batch.pipeline.bench.ranking import marks_of, ranking
from dhr_batch.pipeline.stats.bootstrap import estimate


def test_means_are_of_the_images_that_all_methods_have(figures):
    compared = figures.compared
    assert compared.planned == 6
    assert compared.counted == ["0.png", "1.png", "2.png", "4.png"]
    assert set(compared.failed) == {"broken.png", "3.png"}
    assert list(compared.failed["3.png"]) == ["w+ / fails"]
    assert set(compared.failed["broken.png"]) == {m.name for m in compared.methods}
    psnr = figures.cells["w+ / dhr"]["psnr"]
    run = compared.methods[1].runs[0]
    rows = run.data.metrics.query("stage == 'refined' and metric == 'psnr'").set_index("image_id")
    assert psnr.value == pytest.approx(rows.loc[compared.counted, "value"].mean())
    assert psnr.n == 4
    assert psnr.low < psnr.value < psnr.high
    assert figures.cells["w+ / dhr"]["frechet_tiny"].n == 4


def test_differences_are_paired(figures):
    found = figures.differences["w+ / none"]["psnr"]
    own = [figures.values[m]["psnr"] for m in ("w+ / none", "w+ / dhr")]
    each = [own[0][i] - own[1][i] for i in figures.compared.counted]
    assert found.value == pytest.approx(np.mean(each))
    assert min(each) <= found.low <= found.value <= found.high <= max(each)
    assert "w+ / dhr" not in figures.differences


def test_parts_are_not_ranked_where_masks_differ(figures):
    assert not figures.compared.same_masks
    ranked = {column.key: column.better for column in figures.columns}
    assert ranked["psnr"] == "higher"
    assert ranked["psnr_in"] == ""
    # Everything is in-domain there.
    assert "psnr_out" not in figures.cells["w+ / no_mask"]


def test_realism_is_not_ranked_without_refinement(figures):
    """Pictures that are not refined show another face, whose mouth rightly differs."""
    for key in ("realism", "smile@realism"):
        column = BoardColumn(key, "Realism", "", "higher")
        values = {"w+ / none": -0.1, "w+ / dhr": -0.2, "w+ / no_mask": -0.4}
        cells = {name: {key: estimate([value])} for name, value in values.items()}
        found = marks_of(replace(figures, cells=cells), column)
        assert found == {"w+ / dhr": "best", "w+ / no_mask": "second"}


def test_methods_are_ordered_by_their_mean_rank(figures):
    columns = [c for c in figures.columns if c.key in ("psnr", "ssim")]
    values = {"a": (30.0, 0.8), "b": (31.0, 0.9), "c": (31.0, 0.7)}
    cells = {
        name: {"psnr": estimate([psnr]), "ssim": estimate([ssim])}
        for name, (psnr, ssim) in values.items()
    }
    found = ranking(replace(figures, columns=columns, cells=cells))
    assert [c.key for c in found.columns] == ["psnr", "ssim"]
    assert list(found.means.items()) == [("b", 1.0), ("a", 2.0), ("c", 2.0)]
    assert ranking(replace(figures, columns=[], cells=cells)) is None


def test_edits_are_compared_at_equal_effect(figures):
    (edited,) = figures.compared_edits
    effects = [own["darkness@effect"] for own in figures.cells.values()]
    assert len(set(effects)) == 1
    # Renders are darker than the sources already; only the stronger edits go on from there.
    assert edited.full.images == figures.compared.counted
    assert all(m.effect > 0 for m in edited.full.matches)
    for method in figures.cells:
        assert figures.cells[method]["darkness@reach"].value >= effects[0].value - 1e-9


def test_costs_include_what_was_taken_over(figures):
    own, base = figures.cells["w+ / dhr"], figures.cells["w+ / none"]
    assert own["seconds_embed"] == base["seconds_embed"]
    run = figures.compared.methods[1].runs[0]
    assert run.base is not None
    spent = [
        sum(
            manifests[shard].stage_seconds[stage] / manifests[shard].computed(stage)
            for manifests, stages in (
                (run.base.data.shards, ("embed", "segment")),
                (run.data.shards, ("refine",)),
            )
            for stage in stages
        )
        for shard in run.data.shards
    ]
    assert own["seconds"].value == pytest.approx(np.median(spent))
    files = [m.files for m in run.data.shards.values() if m.ok]
    sizes = [sum(f[t].bytes for t in ("latents", "masks", "deltas")) for f in files]
    oks = [m.ok for m in run.data.shards.values() if m.ok]
    assert oks == [2, 2, 1]
    assert own["bytes"].value == pytest.approx(sum(sizes) / sum(oks) / 1e6)
    assert own["memory_host"].value > 0.1


def test_an_edit_that_cannot_be_compared_is_named(finished):
    (compared,) = load(finished[0], {})
    for method in compared.methods:
        frame = method.metrics
        score = frame["metric"] == "score_darkness"
        edited = score & frame["stage"].str.startswith("edit:")
        moved = frame.assign(stage=frame["stage"].astype(str).str.replace("darkness", "yaw"))
        # No render gets darker than its source: no effect in either direction.
        worse = frame["value"].where(~(score & (frame["stage"] != "source")), -1.0)
        worse = worse.where(~(edited & frame["stage"].str.endswith(":-2")), 2.0)
        method.__dict__["metrics"] = pd.concat([frame.assign(value=worse), moved])
    found = board(compared, "dhr")
    assert [edited.name for edited in found.edits] == ["darkness", "yaw"]
    assert found.compared_edits == []
    lines = bench_text.about(found)
    assert "darkness: 0 of 4 images have an effect that all methods achieve." in lines
    assert "yaw: the score `score_yaw` was not measured." in lines
    assert not [column for column in found.columns if "@" in column.key]
    page = bench_page.page(finished[0], [found], {})
    assert page.sections


def test_effects_of_yaw_have_their_unit(finished):
    (compared,) = load(finished[0], {})
    for method in compared.methods:
        frame = method.metrics
        renamed = {"stage": "darkness", "metric": "score_darkness"}
        method.__dict__["metrics"] = frame.assign(
            stage=frame["stage"].astype(str).str.replace(renamed["stage"], "yaw"),
            metric=frame["metric"].astype(str).str.replace(renamed["metric"], "score_yaw_degrees"),
        )
    found = board(compared, "dhr")
    titles = {c.key: c.title for c in found.columns}
    assert titles["yaw@effect"] == "effect [°]"
    assert titles["yaw@reach"] == "largest effect [°]"
    assert titles["yaw@strength"] == "strength needed"
