"""The runs of a benchmark of random weights, and its command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from dhr_batch.cli import main
from dhr_batch.pipeline.bench import run as bench
from dhr_batch.pipeline.bench.board import board
from dhr_batch.pipeline.bench.data import load, method_name
from dhr_batch.pipeline.bench.matrix import RefinerEntry, parse_matrix
from dhr_batch.pipeline.bench.write import write_benchmark
from dhr_batch.pipeline.datasets import synthetic
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.runs.results import open as open_run
from dhr_batch.pipeline.units import number
from dhr_batch.tests.faults import driven
from dhr_batch.tests.pipeline import discs
from dhr_batch.tests.pipeline.benched import MACHINE, REFINE, TINY, tiny


@pytest.fixture
def without_ray() -> Iterator[None]:
    with driven.without_ray():
        yield


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


def test_methods_meet_the_ground_truth(without_ray, tmp_path, monkeypatch):
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
    without_ray, photographs, tmp_path
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


def test_a_run_that_fails_leaves_the_others(finished, monkeypatch):
    done = no_mask_fails(finished, monkeypatch, OSError("the disk is gone"))
    (compared,) = load(finished[0], done.failed)
    assert [m.refiner for m in compared.methods] == ["none", "dhr", "fails"]


def test_the_command_needs_one_benchmark(tmp_path):
    result = CliRunner().invoke(main, ["bench", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert (
        "ablations, edits, end-to-end, occluders, paper, refine-speed, refiners, smoke"
        in result.output
    )


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
    used = (
        "mobilestylegan-ffhq",
        "stlpips-alex",
        "stlpips-vgg",
        "dlib-landmarks68",
        "selfie-segmentation",
    )
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
