"""A benchmark of random weights, from its runs to its tables."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from dhr_batch.cli import main
from dhr_batch.pipeline.bench import page as bench_page
from dhr_batch.pipeline.bench import run as bench
from dhr_batch.pipeline.bench import text as bench_text
from dhr_batch.pipeline.bench.board import Board, BoardColumn, board
from dhr_batch.pipeline.bench.data import load, method_name
from dhr_batch.pipeline.bench.matrix import RefinerEntry, parse_matrix
from dhr_batch.pipeline.bench.ranking import marks_of, ranking
from dhr_batch.pipeline.bench.write import write_benchmark
from dhr_batch.pipeline.datasets import synthetic
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.runs.results import open as open_run
from dhr_batch.pipeline.stats.bootstrap import estimate
from dhr_batch.pipeline.units import number
from dhr_batch.tests.faults import harness
from dhr_batch.tests.pipeline import discs
from dhr_batch.tests.pipeline.benched import MACHINE, REFINE, TINY, tiny
from dhr_batch.tests.pipeline.chromium import Chromium
from dhr_batch.tests.pipeline.typeset import needs_latex, typeset


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five that can be used, of which one is dark, and one that cannot."""
    folder = tmp_path_factory.mktemp("bench") / "photos"
    folder.mkdir()
    for seed in range(5):
        draw = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        draw = draw // 8 if seed == 3 else draw
        picture = Image.fromarray(draw).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(folder / f"{seed}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder.parent / "photos.yaml").write_text(f"name: photos\nroot: {folder}\naligned: true\n")
    return folder.parent / "photos.yaml"


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with harness.session():
        yield


@pytest.fixture(scope="module")
def finished(session, photographs: Path, tmp_path_factory: pytest.TempPathFactory):
    """A benchmark that ran, and how it ended."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    planned = bench.plan(tiny(photographs), out, machine=MACHINE, random_weights=True)
    done = bench.run(planned, MACHINE)
    page = write_benchmark(planned, done.failed)
    return planned, done, Path(page)


@pytest.fixture(scope="module")
def figures(finished) -> Board:
    (compared,) = load(finished[0], {})
    return board(compared, "dhr")


def test_the_runs_share_their_embedding(finished):
    planned, done, page = finished
    assert done.exit_code == runner.DONE
    assert done.computed == [c.name for c in planned.cells]
    runs = page.parent / "runs"
    assert sorted(p.name for p in runs.iterdir()) == sorted(done.computed)
    base, dhr, no_mask, _ = (
        json.loads((runs / n / "plan.json").read_text()) for n in done.computed
    )
    assert base["config"]["first_stage"] == "align"
    assert dhr["config"]["first_stage"] == "refine"
    assert no_mask["config"]["first_stage"] == "segment"
    assert dhr["fingerprint"]["origin"] == base["fingerprint"]


def test_a_second_call_computes_nothing(finished, monkeypatch):
    planned, _, page = finished
    before = {p: p.stat().st_mtime_ns for p in page.parent.rglob("part-*.parquet")}
    monkeypatch.setattr(runner, "_process", lambda *_: pytest.fail("something was computed"))
    again = bench.plan(planned.matrix, planned.out, machine=MACHINE, random_weights=True)
    done = bench.run(again, MACHINE)
    assert (done.computed, done.failed, done.exit_code) == ([], {}, runner.DONE)
    assert {p: p.stat().st_mtime_ns for p in page.parent.rglob("part-*.parquet")} == before


def test_runs_that_take_turns_have_the_rows_of_others(finished, photographs, tmp_path):
    before, _, page = finished
    base = Path("runs") / before.cells[0].name
    shutil.copytree(page.parent / base, tmp_path / base)
    shutil.copy(page.parent / ".dhr-batch.json", tmp_path)
    found = tiny(photographs, in_turn=True)
    planned = bench.plan(found, tmp_path, machine=MACHINE, random_weights=True)
    done = bench.run(planned, MACHINE)
    assert (done.failed, done.exit_code) == ({}, runner.DONE)
    assert done.computed == ["photos-w+-dhr", "photos-w+-no_mask", "photos-w+-fails"]
    for cell in planned.cells:
        one, other = (open_run(b.place(cell.name)) for b in (before, planned))
        pd.testing.assert_frame_equal(one.metrics, other.metrics)
        assert one.ids == other.ids

    (compared,) = load(planned, {})
    figures = board(compared, "dhr")
    dhr, no_mask, _ = compared.methods[1:]
    times = [own["seconds_refine"] for own in dhr.runs[0].clocks().values()]
    assert figures.cells[dhr.name]["turn_seconds"].value == np.median(times)
    assert "turn_seconds_ratio" not in figures.cells[dhr.name]
    others = [
        own["seconds_segment"] + own["seconds_refine"] for own in no_mask.runs[0].clocks().values()
    ]
    pairs = zip(times, others, strict=True)
    ratio = figures.cells[no_mask.name]["turn_seconds_ratio"]
    assert ratio.value == pytest.approx(np.median([other / one for one, other in pairs]))
    assert (ratio.n, compared.methods[0].runs[0].clocks()) == (3, {})
    # Two steps and the render of the result, of a whole shard; its last one has one image.
    calls = [own["generator_calls_refine"] for own in dhr.runs[0].clocks().values()]
    assert calls == [3 / 2, 3 / 2, 3 / 1]
    assert bench.run(planned, MACHINE).computed == []


def test_methods_meet_the_ground_truth(session, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "context", lambda generator: discs.context())
    described = synthetic.write_dataset(tmp_path / "synthetic", 3, generator="tiny")
    found = tiny(described)
    refiners = {name: found.refiners[name] for name in ("dhr", "no_mask")}
    found = found.model_copy(update={"refiners": refiners})
    planned = bench.plan(found, tmp_path / "out", machine=MACHINE, random_weights=True)
    assert bench.run(planned, MACHINE).exit_code == runner.DONE
    page = Path(write_benchmark(planned, {}))
    lines = page.with_name("benchmark.md").read_text().splitlines()
    (board,) = json.loads(page.with_name("benchmark.json").read_text())["datasets"]
    kept = {
        row["method"]: row
        for row in board["truth"]["figures"]
        if (row["metric"], row["picture"]) == ("truth_psnr", "occluded")
    }
    tex = page.with_name("benchmark.tex").read_text().splitlines()
    begin = "| PSNR [dB], uncovered face | occluded | "
    shown = {line.removeprefix(begin).split(" | ")[0]: line for line in lines if begin in line}
    assert list(shown) == ["w+ / none", "w+ / dhr", "w+ / no_mask"]
    for cell in planned.cells:
        own = open_run(planned.place(cell.name)).metrics
        psnr = own[(own["metric"] == "truth_psnr") & (own["stage"] == "refined")]["value"]
        line = shown[method_name(cell.embedder, cell.refiner)]
        assert f" | {number(psnr.mean())} | " in line
        row = kept[method_name(cell.embedder, cell.refiner)]
        assert (row["mean"], row["n"]) == (pytest.approx(psnr.mean()), 3)
        assert len(row["by_share"]) == len(board["truth"]["occluded_shares"]) - 1
        row = line.strip("| ").replace(" | ", " & ").replace("–", "--").replace("_", r"\_")
        assert row + r" \\" in tex
        assert len(psnr) == 3
    # There, and not among the figures of the reconstruction.
    assert sum("uncovered face" in line for line in lines) == 2 * 3


def test_more_images_go_through_the_same_runs_and_seeds_are_averaged(
    session, photographs, tmp_path
):
    found = tiny(photographs, seeds=[0, 3], refiners={"dhr": {"settings": {"refine": REFINE}}})
    images, written = [], {}
    for limit in (2, 3):
        planned = bench.plan(found, tmp_path, limit, MACHINE, random_weights=True)
        done = bench.run(planned, MACHINE)
        assert (done.failed, done.exit_code) == ({}, runner.DONE)
        images.append([open_run(planned.place(c.name)).ids for c in planned.cells])
        written = written or {p: p.stat().st_mtime_ns for p in tmp_path.rglob("part-*")}
    assert [set(map(len, ids)) for ids in images] == [{2}, {3}]
    assert written == {p: p.stat().st_mtime_ns for p in written}
    (compared,) = load(planned, {})
    for method in compared.methods:
        one, other = (run.data.metrics for run in method.runs)
        other["value"] += 1
        key = ["image_id", "stage", "metric"]
        means = dict(method.metrics.set_index(key)["value"])
        assert means == pytest.approx(dict(one.set_index(key)["value"] + 0.5))
        assert len(means) == len(method.metrics)


def test_other_settings_in_the_same_place_are_refused(finished, photographs):
    planned, _, _ = finished
    changed = tiny(photographs, settings=TINY | {"store_deltas": "none"})
    other = bench.plan(changed, planned.out, machine=MACHINE, random_weights=True)
    with pytest.raises(
        Refused,
        match=r"run photos-w\+-none of this benchmark: it was started with (.|\n)*store_deltas"
        r"(.|\n)*delete .*/out/runs/photos-w\+-none to compute this run again",
    ) as refusal:
        bench.run(other, MACHINE)
    assert "--fresh" not in str(refusal.value)


def no_mask_fails(finished, monkeypatch, error):
    """The outcome where the run of that method raises an error."""
    real = runner.run

    def failing(plan, request):
        if str(request.out).endswith("no_mask"):
            raise error
        return real(plan, request)

    monkeypatch.setattr(runner, "run", failing)
    done = bench.run(finished[0], MACHINE)
    assert done.failed == {"photos-w+-no_mask": str(error)}
    assert done.exit_code == runner.ERROR
    return done


@pytest.mark.parametrize("code", [runner.DONE, runner.INTERRUPTED])
def test_a_stop_that_is_asked_for_ends_the_benchmark(finished, monkeypatch, code):
    """Also in the last shards of a run, which is finished then."""
    calls = []

    def stopped(plan, request):
        calls.append(request.out)
        return runner.RunOutcome(str(request.out), 5, 5, 0, code, stopped=True)

    monkeypatch.setattr(runner, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench.run(finished[0], MACHINE)
    assert len(calls) == 1


def test_a_run_in_use_does_not_keep_the_others(finished, monkeypatch):
    no_mask_fails(finished, monkeypatch, Refused("no_mask is in use by process 1"))


def test_planned_images_are_those_within_the_limit(photographs, tmp_path):
    planned = bench.plan(tiny(photographs), tmp_path, limit=3, machine=MACHINE, random_weights=True)
    assert planned.sizes == {str(photographs): 3}


def test_random_weights_are_refused(photographs, tmp_path):
    with pytest.raises(Refused, match="generator=tiny has random weights"):
        bench.plan(tiny(photographs), tmp_path, machine=MACHINE)


@pytest.mark.parametrize("stage", ["embed", "segment", "refine"])
def test_random_losses_are_refused(photographs, tmp_path, stage):
    names = {"embed": "w+", "segment": "dhr", "refine": "dhr"}
    settings = {"refine": "none", stage: {"name": names[stage], "perceptual": "tiny"}}
    found = parse_matrix(
        {"datasets": [str(photographs)], "embedders": {"a": {"settings": settings}}}, ""
    )
    if stage == "refine":
        found = found.model_copy(update={"refiners": {"r": RefinerEntry(settings=settings)}})
    with pytest.raises(Refused, match=f"{stage}.perceptual=tiny has random weights"):
        bench.plan(found, tmp_path, machine=MACHINE)


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


def test_the_page_opens_with_the_ranking_and_a_plot(finished, figures):
    first, second, *_ = bench_page.page(finished[0], [figures], {}).sections
    assert (first.key, second.key) == ("ranking", "images")
    (table,), (plot,) = first.lead, first.plots
    assert [column.title for column in table.columns[:2]] == ["method", "mean rank"]
    assert {row[0] for row in table.rows} == set(figures.cells)
    assert [row[1] for row in table.rows] == sorted(row[1] for row in table.rows)
    assert plot.title == "PSNR against seconds"


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


def test_a_page_of_two_datasets_says_whose_images_it_shows(finished, figures):
    for boards, said in (([figures], 0), ([figures, figures], 1)):
        sections = bench_page.page(finished[0], boards, {}).sections
        (images,) = [s for s in sections if s.key == "images"]
        found = sum("Images of photos; the images of the other" in text for text in images.text)
        assert found == said


def test_a_column_of_fewer_images_says_so(figures):
    counted = len(figures.compared.counted)
    key = next(key for key in figures.cells["w+ / dhr"] if key.endswith("@effect"))
    column = next(c for c in figures.columns if c.key == key)
    for n, expected in ((counted, column.title), (2, f"{column.title} (n = 2)")):
        cells = {
            name: own | {key: replace(own[key], n=n)} if key in own else own
            for name, own in figures.cells.items()
        }
        assert bench_text.head(replace(figures, cells=cells), column, column.sheet) == expected


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


def test_markdown_marks_the_best(finished, figures):
    text = (finished[2].parent / "benchmark.md").read_text("utf-8")
    assert "Means over the 4 of 6 images that all 4 methods have." in text
    assert "3.png (refine: dark in w+ / fails)" in text
    table = text.partition("### Reconstruction")[2].partition("###")[0]
    rows = {
        r[0]: r[1:]
        for r in (
            re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if line.startswith("|")
        )
    }
    column = rows["method"].index("PSNR [dB]")
    values = {m: own["psnr"].value for m, own in figures.cells.items()}
    best = max(values, key=values.__getitem__)
    assert rows[best][column].startswith(f"**{number(values[best])}** [")
    for heading in (
        "Edit darkness at equal effect",
        "Cost",
        "Paired differences",
        "Published figures",
    ):
        assert f"# {heading}" in text
    assert text.index("Published figures") > text.index("### Runs")


def test_latex_is_balanced_and_escaped(finished):
    text = (finished[2].parent / "benchmark.tex").read_text("utf-8")
    for word in ("table", "tabular"):
        assert text.count(f"\\begin{{{word}}}") == text.count(f"\\end{{{word}}}") > 4
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.count("{") - body.count("\\{") == body.count("}") - body.count("\\}")
    assert not re.search(r"(?<!\\)[_#%]", body)
    assert "\\textbf{" in body
    assert "\\underline{" in body
    for tabular in re.findall(r"\\begin\{tabular\}\{(l[rl]*)\}(.*?)\\end\{tabular\}", body, re.S):
        rows = [line for line in tabular[1].splitlines() if line.endswith("\\\\")]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(tabular[0])}


@needs_latex
def test_latex_is_typeset(finished, tmp_path):
    log = typeset(finished[2].parent / "benchmark.tex", tmp_path)
    assert "Missing character" not in log


def test_csv_and_json_have_every_figure_and_its_origin(finished, figures):
    folder = finished[2].parent
    rows = list(csv.DictReader((folder / "benchmark.csv").open()))
    assert len(rows) == sum(len(own) for own in figures.cells.values())
    found = {(r["refiner"], r["column"]): r for r in rows}
    run = figures.compared.methods[1].runs[0]
    assert found["dhr", "psnr"]["run"] == "photos-w+-dhr"
    assert found["dhr", "psnr"]["fingerprint"] == run.fingerprint
    assert float(found["dhr", "psnr"]["value"]) == figures.cells["w+ / dhr"]["psnr"].value
    images = list(csv.DictReader((folder / "images.csv").open()))
    own = [r for r in images if (r["method"], r["column"]) == ("w+ / dhr", "psnr")]
    assert [r["image_id"] for r in own] == figures.compared.counted
    content = json.loads((folder / "benchmark.json").read_text())
    (dataset,) = content["datasets"]
    assert dataset["images"] == figures.compared.counted
    method = dataset["methods"][1]
    assert method["figures"]["psnr"]["n"] == 4
    assert method["runs"][0]["settings"]["refine"]["steps"] == 2
    assert method["runs"][0]["begins_from"] == "photos-w+-none"
    assert dataset["made_by"]["psnr"] == ["generator=tiny (random weights)"]


def test_the_page_is_one_file_with_the_pictures_of_all_methods(finished):
    text = finished[2].read_text("utf-8")
    assert not re.search(r"<(?:img|script|link|iframe)[^>]* (?:src|href)=", text)
    assert text.count('type="application/json" id="p') == 4
    assert 'class="n best"' in text
    gallery = json.loads(re.search(r'id="gallery-data">(.*?)</script>', text)[1])
    assert gallery["columns"][:2] == ["source", "w+ / none"]
    assert len(gallery["columns"]) == 1 + 4 + 4


def test_chromium_shows_and_sorts_the_tables(finished):
    with Chromium() as browser:
        browser.open(Path(finished[2]))
        browser.settle()
        tables = "[...document.querySelectorAll('table')]"
        table = f"{tables}.find(t => t.closest('#figures')?.textContent.includes('PSNR'))"
        names = f"[...{table}.tBodies[0].rows].map(r => r.cells[0].textContent)"
        before = browser.run(names)
        values = browser.run(
            f"[...{table}.tBodies[0].rows].map(r => Number(r.cells[1].dataset.value))"
        )
        browser.run(f"{table}.tHead.rows[0].cells[1].querySelector('button').click()")
        order = sorted(range(len(values)), key=values.__getitem__)
        assert browser.run(names) in ([before[i] for i in order], [before[i] for i in order[::-1]])
        best = browser.run(f"[...{table}.querySelectorAll('td.best')].map(c => c.textContent)")
        assert len(best) >= 3
        assert browser.run("document.querySelectorAll('.banner')[0].textContent").startswith(
            "random weights"
        )
        assert browser.run("document.querySelectorAll('#gallery .rows > *').length") == 4
        assert browser.errors == []


def test_a_run_that_fails_leaves_the_others(finished, monkeypatch):
    done = no_mask_fails(finished, monkeypatch, OSError("the disk is gone"))
    (compared,) = load(finished[0], done.failed)
    assert [m.refiner for m in compared.methods] == ["none", "dhr", "fails"]


def test_the_command_needs_one_benchmark(tmp_path):
    result = CliRunner().invoke(main, ["bench", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "ablations, edits, end-to-end, occluders, paper, refine-speed, refiners, smoke" in result.output


def test_the_command_lists_its_runs(photographs, tmp_path):
    words = ["bench", "--preset", "smoke", "--dataset", str(photographs), "--gpus", "0"]
    result = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == str(tmp_path / "out" / "runs" / "photos-w+-none")
    assert lines[-1].endswith("photos-w+-dhr  (from refine of photos-w+-none)")
    assert not (tmp_path / "out").exists()


def test_the_command_lists_runs_and_needs(models, photographs, tmp_path, monkeypatch):
    cache, home = catalogue.home() / "models", tmp_path / "home"
    (home / "models").mkdir(parents=True)
    used = ("mobilestylegan-ffhq", "stlpips-alex", "stlpips-vgg", "dlib-landmarks68")
    for name in (*used, "dlib-face-resnet"):
        models(name)
        (home / "models" / name).symlink_to(cache / name)
    monkeypatch.setenv("DHR_BATCH_HOME", str(home))
    words = ["bench", "--preset", "paper", "--dataset", str(photographs), "--gpus", "0", "-n"]
    chosen = ["--generator", "mobilestylegan-256", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*words, *chosen])
    assert result.exit_code == 0, result.output
    stem = f"{tmp_path}/out/runs/photos-mobilestylegan_256"
    assert f"{stem}-w+-dhr  (from refine of photos-mobilestylegan_256-w+-none)\n" in result.output
    assert (
        f"{stem}-e4e-none  (needs e4e-ffhq: dhr-batch models pull e4e-ffhq --file " in result.output
    )
    assert "Left out, as models are missing: lpips_alex, lpips_vgg, " in result.output
    # Methods for StyleGAN2 have no row there.
    assert "-hyperstyle" not in result.output

    result = CliRunner().invoke(main, [*words, "--generator", "stylegan2-ffhq-1024", *chosen[2:]])
    assert result.exit_code == 1
    assert "dhr-batch models pull stylegan2-ffhq-1024" in result.output
