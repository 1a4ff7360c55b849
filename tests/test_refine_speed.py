"""The benchmark of refinement: what it compares is what it says, and its figures add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dhr_batch.benchmarks import refine_measured as measured
from dhr_batch.benchmarks import refine_methods as methods
from dhr_batch.benchmarks.equal_identity import Curve, compare, curves, mean_effects
from dhr_batch.benchmarks.published_waste import WastefulRefinement
from dhr_batch.benchmarks.refine_methods import Clocks, Steps, Trial
from dhr_batch.benchmarks.refine_speed import main
from dhr_batch.benchmarks.refine_table import text
from dhr_batch.stages.base import Context, Metric
from dhr_batch.stages.refine_published import PublishedRefinement

FEW = Steps(2, 2, 1)


@pytest.fixture
def context() -> Context:
    return methods.context_of(methods.configured("tiny"))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short baseline, and no process for its memory."""
    for module in (methods, measured):
        monkeypatch.setattr(module, "PUBLISHED", FEW)
    monkeypatch.setattr(measured, "memory", lambda *_: {"peak_mb": 2.0, "increase_mb": 1.0})


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
    options = {"perceptual": "tiny", "steps": 8} | methods.TUNED
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


def test_targets_computed_again_give_the_same_mask(context):
    config = methods.configured("tiny")
    records = methods.synthetic(context, 2)
    wasteful = methods.baseline(config, context, Steps(5, 1, 1)).segment
    lean = type(wasteful)(wasteful.options)
    lean.setup(context)
    for one, other in zip(lean.errors(records), wasteful.errors(records), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_baseline_keeps_its_mask_whatever_the_default_is(context):
    config = methods.configured("tiny")
    other = {"source": "mean_row", "error_layers": 1, "thresholds": {"other": 0.1, "mouth": 3.0}}
    changed = config.model_copy(update={"segment": config.segment | other})
    one, two = (methods.baseline(c, context, FEW).segment.options for c in (config, changed))
    assert one == two
    assert (one.source, one.error_layers, one.thresholds.mouth) == ("coarse", None, 1)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("source", ["embedding", "mean_row"])
@pytest.mark.parametrize(("name", "calls"), [("default", 1 + 3 + 1), ("baseline", (2 + 1) + 3 + 1)])
def test_one_call_of_the_generator_per_step_for_the_whole_batch(
    context, monkeypatch, size, source, name, calls
):
    config = methods.configured("tiny")
    config = config.model_copy(update={"segment": config.segment | {"source": source}})
    tried = methods.METHODS[name](config, context, FEW)
    trunks = counted(monkeypatch, tried.refine.generator, "trunk")
    result = methods.trial(tried, methods.synthetic(context, size))
    assert len(result.calls) == calls
    assert len(trunks) == {"default": 8, "baseline": 10}[name]
    assert [r.failure for r in result.records] == [None] * size
    assert all(r.refined is not None and r.mask is not None for r in result.records)
    assert "from_feature" not in vars(tried.refine.generator)


@pytest.mark.parametrize("coarse", [0, 2])
def test_extrapolation_is_exact_for_even_steps(coarse):
    """Phases of 1, 4 and 2 s a step, 10 s before, 5 s between and 3 s after."""
    wanted, done = Steps(20 * coarse, 50, 50), Steps(coarse, 3, 2)

    def run(steps: Steps) -> tuple[list[Clocks], Clocks]:
        now, calls = 10.0, []
        calls += [now + i for i in range(steps.coarse + 1)]
        now = calls[-1] + 5
        for lasted in [4.0] * steps.weights + [2.0] * steps.feature:
            calls.append(now)
            now += lasted
        # The processor's clock runs at half the pace, as on a machine that others use.
        return [Clocks(c, c / 2) for c in [*calls, now]], Clocks(now + 3, (now + 3) / 2)

    calls, whole = run(done)
    found = methods.extrapolated(Trial([], whole, calls), done, wanted)
    assert found == pytest.approx(run(wanted)[1])


@pytest.mark.parametrize(
    ("distance", "effect"),
    [(0.1, 0.0), (0.2, 0.0), (0.3, 0.5), (0.4, 1.0), (0.5, 2.0), (0.6, 3.0), (0.9, 3.0)],
)
def test_effect_within_a_distance(distance, effect):
    assert Curve((0.2, 0.4, 0.6), (0.0, 1.0, 3.0)).effect_at(distance) == pytest.approx(effect)


def test_identity_that_comes_back_counts_as_lost():
    # The strongest edit within 0.5 is the full one: its own distance is smaller.
    curve = Curve((0.2, 0.5, 0.3), (0.0, 1.0, 3.0))
    assert curve.effect_at(0.5) == 3.0
    assert curve.effect_at(0.35) == pytest.approx(0.5)


def test_equal_identity_is_that_of_the_method_that_keeps_more():
    keeps = Curve((0.1, 0.2, 0.3), (0.0, 1.0, 2.0))
    loses = Curve((0.1, 0.3, 0.5), (0.0, 1.5, 3.0))
    assert compare(keeps, loses) == pytest.approx((2.0, 1.5))
    assert compare(loses, keeps) == pytest.approx((1.5, 2.0))
    assert compare(keeps, keeps) == pytest.approx((2.0, 2.0))
    assert mean_effects({1: keeps}, {-1: keeps}) == (None, None)
    assert mean_effects({1: keeps, -1: loses}, {1: loses, -1: loses}) == pytest.approx((2.5, 2.25))


def test_curves_are_read_from_the_metrics():
    def rows(stage: str, distance: float, score: float) -> list[Metric]:
        return [
            Metric(stage, "identity_dlib_distance", distance, ""),
            Metric(stage, "score_smile", score, ""),
        ]

    metrics = [*rows("refined", 0.1, 1.0), *rows("edit:smile:1", 0.2, 1.5)]
    metrics += [*rows("edit:smile:2", 0.3, 1.75), *rows("edit:smile:-1", 0.4, 0.5)]
    assert curves(metrics) == {1: Curve((0.1, 0.2, 0.3), (0.0, 0.5, 0.75))}
    metrics += rows("edit:smile:-2", 0.5, 0.25)
    assert curves(metrics)[-1] == Curve((0.1, 0.4, 0.5), (0.0, 0.5, 0.75))


def folder_of(folder: Path, names: list[str]) -> Path:
    draw = np.random.default_rng(0)
    for name in names:
        small = draw.integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC).save(folder / name)
    return folder


def test_figures_add_up(short, tmp_path):
    folder = folder_of(tmp_path, ["a.png", "b.png", "d.png"])
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:60])
    file = tmp_path / "speed.json"
    arguments = ["--generator", "tiny", "--dataset", str(folder), "--aligned", "--published"]
    arguments += ["--batch", "1,4", "--cache", str(tmp_path / "codes"), "--json", str(file)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(file.read_text())
    assert "left out: c.png" in done.stderr
    assert "3 pairs are few" in done.stdout
    assert "random weights" in done.stdout

    rows = {(row["method"], row["batch"]): row for row in result["rows"]}
    assert list(rows) == [("default", 1), ("baseline", 1), ("published rates", 1), ("default", 4)]
    default, baseline = rows["default", 1], rows["baseline", 1]
    assert [r["image"] for r in default["images"]] == ["a.png", "b.png", "d.png"]
    ratios = [
        theirs["seconds"] / ours["seconds"]
        for ours, theirs in zip(default["images"], baseline["images"], strict=True)
    ]
    assert result["speedup"] == pytest.approx(median(ratios))
    gains = [
        ours["psnr"] - theirs["psnr"]
        for ours, theirs in zip(default["images"], baseline["images"], strict=True)
    ]
    assert result["psnr_gain_db"] == pytest.approx(fmean(gains))
    assert default["images_per_hour"] == pytest.approx(3600 / default["seconds"])
    batched = rows["default", 4]
    assert batched["generator_calls"] == default["generator_calls"] == 1 + 2 + 1


def test_an_image_that_cannot_be_refined_is_left_out(short, context):
    comparison = measured.Comparison(methods.configured("tiny"), context, published=True)
    good, bad = methods.synthetic(context, 2)
    bad = replace(bad, latent=np.full_like(bad.latent, np.nan))
    assert "not finite" in comparison.add(bad, 0)
    assert comparison.pairs == []
    # Whoever is first, rows come in one order: the sign of the gain depends on it.
    assert comparison.add(good, 1) == ""
    assert list(comparison.images) == ["default", "baseline", "published rates"]
    assert [p["image"] for p in comparison.pairs] == [good.image_id]


def test_cached_codes_are_those_that_were_made(short, tmp_path, context, monkeypatch):
    photographs = measured.Photographs(
        str(folder_of(tmp_path, ["a.png"])), None, True, tmp_path / "codes"
    )
    config = methods.configured("tiny")
    context.aligned = True
    (made,) = photographs.embedded(config, context)
    embeddings = counted(monkeypatch, torch.optim.Adam, "step")
    (kept,) = photographs.embedded(config, context)
    assert not embeddings
    for name in ("image", "latent", "inverted"):
        assert np.array_equal(getattr(made, name), getattr(kept, name)), name
    other = config.model_copy(update={"embed": config.embed | {"steps": 3}})
    assert len(list(photographs.embedded(other, context))) == 1
    assert embeddings


def test_cost_alone_extrapolates_and_says_so(short, monkeypatch):
    monkeypatch.setattr(methods, "PUBLISHED", Steps(40, 50, 50))
    result = measured.cost_alone("tiny", 1)
    assert result["psnr_gain_db"] is None
    default, baseline = result["rows"]
    assert baseline["steps"] == "40+50+50"
    assert "cost only; from 4+5+5 steps" in baseline["note"]
    assert "psnr" not in text(result).lower()
    assert result["speedup"] == pytest.approx(baseline["seconds"] / default["seconds"])


@pytest.mark.parametrize("batch", ["", "0,4", "two"])
def test_a_batch_that_is_no_size_is_refused(batch):
    done = CliRunner().invoke(main, ["--batch", batch])
    assert done.exit_code == 2
    assert "is not a list of sizes such as 1,4" in done.output


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own():
    held = bytearray(600_000_000)
    held[::4096] = b"x" * len(held[::4096])
    for name in ("default", "baseline"):
        figures = methods.memory(name, "tiny")
        assert 100 < figures["peak_mb"] < 1500
        assert 0 < figures["increase_mb"] < 300
