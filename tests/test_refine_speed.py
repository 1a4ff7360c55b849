"""The comparison with the published schedule: it compares what it says, and its figures add up."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dhr_batch.benchmarks import refine_speed
from dhr_batch.benchmarks.published_waste import WastefulRefinement, WastefulSegmentation
from dhr_batch.pipeline.bench import matrix
from dhr_batch.pipeline.planning import config
from dhr_batch.pipeline.runs.results import open as open_run
from dhr_batch.stages.context import Context
from dhr_batch.stages.record import Record
from dhr_batch.stages.refine.published import PublishedRefinement
from dhr_batch.stages.segment import DomainSpecific
from dhr_batch.tests.faults import driven


@pytest.fixture
def context() -> Context:
    return Context("cpu", "tiny", models=lambda name: Path())


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[None]:
    calls: list[None] = []
    original = getattr(owner, name)

    def noted(*arguments, **options):
        calls.append(None)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, noted)
    return calls


def test_waste_changes_nothing_but_the_work(context, monkeypatch):
    net = context.network("generator", "tiny").double()
    perceptual = context.network("perceptual", "tiny").double()
    draw = torch.Generator().manual_seed(1)
    ws = net.broadcast(net.map(torch.randn(2, 512, generator=draw, dtype=torch.float64)))
    images = net.synthesize(ws) + 0.5 * torch.randn(2, 3, 1, 32, generator=draw).double()
    masks = torch.zeros(2, 1, 32, 32, dtype=torch.float64)
    masks[:, :, :, 10:] = 1
    trunk = counted(monkeypatch, net, "trunk")
    features = counted(monkeypatch, perceptual, "features")
    options = {"perceptual": "tiny", "steps": 8, "weight_rate": 2e-4, "pixel_weight": 10.0}
    found, work = [], []
    for member in (PublishedRefinement, WastefulRefinement):
        stage = member(member.Options(**options))
        stage.setup(context)
        trunk.clear(), features.clear()
        found.append(stage.refine(images, ws, masks))
        work.append((len(trunk), len(features)))
    lean, wasteful = found
    assert lean.delta.keys() == wasteful.delta.keys()
    for name, value in lean.delta.items():
        assert (value - wasteful.delta[name]).abs().max() < 1e-9, name
        assert "modulation.bias" in name or value.abs().max() > 0, name
    assert (lean.feature - wasteful.feature).abs().max() < 1e-9
    # The start, 4 weight steps and the frozen trunk, against the start and all 8 steps; a target
    # and 8 renders, against both in every step.
    assert work == [(1 + 4 + 1, 1 + 8), (1 + 8, 8 + 8)]


def test_thrown_away_gradients_are_computed(context):
    """The backward pass of the out-of-domain loss reaches every weight in every step."""
    stage = WastefulRefinement(WastefulRefinement.Options(perceptual="tiny", steps=3))
    stage.setup(context)
    net = stage.generator
    reached: list[str] = []
    original = net._moved

    def noted(shared, name, delta, batch):
        value = original(shared, name, delta, batch)
        if value.requires_grad:
            value.register_hook(lambda _, name=name: reached.append(name))
        return value

    net._moved = noted
    ws = net.broadcast(net.w_mean[None])
    stage.refine(torch.zeros(1, 3, 32, 32), ws, torch.full((1, 1, 32, 32), 0.5))
    # 3 steps with the outer loss, round(1.5) = 2 with the inner.
    assert reached.count("input") == 3 + 2


def test_targets_computed_again_give_the_same_mask(context, monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    features = counted(monkeypatch, context.network("perceptual", "tiny"), "features")
    found, work = [], []
    for member in (DomainSpecific, WastefulSegmentation):
        options = {"parser": "none", "perceptual": "tiny", "source": "coarse", "coarse_steps": 5}
        stage = member(member.Options(**options))
        stage.setup(context)
        features.clear()
        found.append(stage.errors([Record("a", "a", image=image)]))
        work.append(len(features))
    assert all(np.array_equal(*pair) for pair in zip(*(maps for (maps,) in found), strict=True))
    # A target and 5 renders, against both in every step; then the maps of the error.
    assert work == [1 + 5 + 2, 5 + 5 + 2]


def test_the_published_methods_have_masks_and_steps_of_their_own():
    """Whatever the settings of the default are."""
    content = matrix.shipped_matrix("refine-speed").model_dump()
    content["settings"]["segment"] = {"name": "dhr", "error_layers": 1, "thresholds": {"mouth": 3}}
    found = matrix.parse_matrix(content, "test")
    cells = {c.refiner: c for c in matrix.expand(found, {"portraits": "p"})}
    assert {c.begins_at for name, c in cells.items() if name != "none"} == {"segment"}
    resolved = {
        name: config.resolve(config.build([cell.settings, {"dataset": "-"}]), 0, 1)
        for name, cell in cells.items()
    }
    for name, rates in (("tuned", (2e-4, 5e-2, 10)), ("published", (1.5e-3, 9e-2, 1))):
        segment, refine = resolved[name].segment, resolved[name].refine
        assert (segment["source"], segment["coarse_steps"]) == ("coarse", 40)
        assert (segment["error_layers"], segment["thresholds"]["mouth"]) == (None, 1)
        assert (refine["steps"], refine["weight_share"]) == (100, 0.5)
        assert tuple(refine[k] for k in ("weight_rate", "feature_rate", "pixel_weight")) == rates
        edit = resolved[name].edit
        assert (edit["rows"], edit["follow"]) == ("all", "none")
    assert resolved["dhr"].edit["rows"] == "trunk"
    assert resolved["dhr"].segment["thresholds"]["mouth"] == 3
    perceptual = {resolved[name].refine["perceptual"] for name in ("dhr", "tuned", "published")}
    assert perceptual == {"st_lpips_alex"}


def test_figures_add_up(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name in ("a.png", "b.png"):
        small = draw.integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(photographs / name)
    (photographs / "c.png").write_bytes((photographs / "a.png").read_bytes()[:60])
    real, file, out = refine_speed.measure, tmp_path / "speed.json", tmp_path / "out"

    def short(content, images, folder):
        del content["refiners"]["published"]
        tuned = content["refiners"]["tuned"]["settings"]
        tuned["segment"]["coarse_steps"] = 2
        tuned["refine"] |= {"steps": 4, "weight_share": 0.75}
        return real(content, images, out)

    monkeypatch.setattr(refine_speed, "measure", short)
    words = ["--generator", "tiny", "--dataset", str(photographs), "--aligned"]
    words += ["--json", str(file)]
    with driven.without_ray():
        done = CliRunner().invoke(refine_speed.main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "2 pairs are few" in done.stdout
    assert "random weights: the results are meaningless" in done.stdout
    result = json.loads(file.read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["none", "dhr", "tuned"]
    # The render of each step and of the result; of a coarse inversion also that of its code.
    assert rows["dhr"]["turn_generator_calls"] == 2 + 1
    assert rows["tuned"]["turn_generator_calls"] == (2 + 1) + 4 + 1

    runs = {name: out / "runs" / f"photographs-w+-{name}" for name in ("dhr", "tuned")}
    manifests = {name: sorted(run.glob("_state/shards/*.json")) for name, run in runs.items()}
    seconds = {
        name: [
            clocks["seconds_segment"] + clocks["seconds_refine"]
            for clocks in (json.loads(m.read_text())["clocked"] for m in found)
        ]
        for name, found in manifests.items()
    }
    ratios = [slow / fast for fast, slow in zip(seconds["dhr"], seconds["tuned"], strict=True)]
    assert result["speedup"] == pytest.approx(median(ratios))
    assert len(ratios) == 2
    psnr = {}
    for name, run in runs.items():
        metrics = open_run(run).metrics
        wanted = (metrics["stage"] == "refined") & (metrics["metric"] == "psnr")
        psnr[name] = fmean(metrics[wanted]["value"])
        assert rows[name]["psnr"] == pytest.approx(psnr[name])
    assert result["psnr_gain_db"] == pytest.approx(psnr["dhr"] - psnr["tuned"])
