"""Pivotal tuning: what it moves, when an image stops, and exactness in a batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.refine.base import Refinement
from dhr_batch.stages.refine.pti import PivotalTuning


def refiner(context: Context, **options) -> PivotalTuning:
    stage = PivotalTuning(PivotalTuning.Options(perceptual="tiny", **options))
    stage.setup(context)
    return stage


def photographs(stage: PivotalTuning, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that are further from their render the later they come, and the codes."""
    draw = torch.Generator().manual_seed(1)
    net = stage.generator
    with torch.no_grad():
        ws = net.broadcast(net.map(torch.randn(count, 512, generator=draw).double()))
        noise = torch.randn(count, 3, 32, 32, generator=draw).double()
        images = net.synthesize(ws) + 0.1 * torch.arange(1, count + 1)[:, None, None, None] * noise
    return images, ws


def tuned(stage: PivotalTuning, images: torch.Tensor, ws: torch.Tensor) -> Refinement:
    return stage.refine(images, ws, torch.ones(len(images), 1, 32, 32).double())


@torch.no_grad()
def distances(stage: PivotalTuning, images, ws, result: Refinement) -> torch.Tensor:
    render = stage.generator.synthesize(ws, result.delta)
    return stage.perceptual.distance(render, stage.perceptual.features(images))


def test_the_whole_synthesis_network_moves_and_the_image_comes_closer(context):
    stage = refiner(context, steps=30, rate=1e-4, stop=0)
    images, ws = photographs(stage, 2)
    result = tuned(stage, images, ws)
    before = distances(stage, images, ws, Refinement({}))
    assert (distances(stage, images, ws, result) < 0.8 * before).all()
    assert result.feature is None
    assert set(result.delta) == {
        n for n in stage.generator.weight_names() if not n.startswith("mapping.")
    }
    assert all(value.any() for value in result.delta.values())


def test_an_image_stops_when_it_is_near_enough(context):
    stage = refiner(context, steps=0)
    images, ws = photographs(stage, 2)
    start = distances(stage, images, ws, Refinement({}))
    # The first image is there before any step, the second one is not after them all.
    near = float(start.min() + (start.max() - start.min()) * 0.01)
    stage = refiner(context, steps=3, stop=near)
    result = tuned(stage, images, ws)
    assert not any(value[0].any() for value in result.delta.values())
    assert any(value[1].any() for value in result.delta.values())


def test_no_step_is_made_once_all_images_are_near_enough(context, monkeypatch):
    stage = refiner(context, steps=50, rate=1e-4, stop=0)
    images, ws = photographs(stage, 2)
    after = distances(stage, images, ws, tuned(refiner(context, steps=5, rate=1e-4), images, ws))
    stage = refiner(context, steps=50, rate=1e-4, stop=float(after.max()))
    calls = []
    synthesize = stage.generator.synthesize
    monkeypatch.setattr(
        stage.generator, "synthesize", lambda *args: calls.append(1) or synthesize(*args)
    )
    result = tuned(stage, images, ws)
    monkeypatch.undo()
    assert len(calls) == 6
    assert (distances(stage, images, ws, result) <= after.max()).all()


def test_batched_equals_single(context):
    stage = refiner(context, steps=12, rate=1e-4)
    images, ws = photographs(stage, 3)
    start = distances(stage, images, ws, Refinement({}))
    # One image stops on the way, the others go on.
    stage = refiner(context, steps=12, rate=1e-4, stop=float(start.min()) * 0.9)
    batch = tuned(stage, images, ws)
    for i in range(3):
        one = slice(i, i + 1)
        single = tuned(stage, images[one], ws[one])
        for name, value in single.delta.items():
            assert (batch.delta[name][one] - value).abs().max() < 1e-6, name


def lpips_alex(facts: dict, fill) -> Perceptual:
    weights = {}
    for key, shape in facts["lpips_state_dict"]:
        if not key.endswith(("net.mean", "net.std")):
            name = key.replace("alex.net.layers.", "features.").replace("alex.lin.", "lin")
            name = name.replace(".1.weight", ".model.1.weight") if "lin" in name else name
            weights[name] = torch.from_numpy(fill(key, shape, facts["fill_rules"]))
    return Perceptual("lpips_alex", weights)


# Our name of each tensor that the fixture records.
RECORDED = {
    "input.input": "input",
    "conv1.conv.weight": "conv1.weight",
    "convs.3.conv.modulation.weight": "convs.3.modulation.weight",
    "convs.7.activate.bias": "convs.7.bias",
    "to_rgbs.4.conv.weight": "to_rgbs.4.weight",
}


def test_steps_equal_published(golden, fill, monkeypatch):
    reason = "needs the StyleGAN2 generator"
    layouts = pytest.importorskip(
        "dhr_batch.stages.networks.generators.stylegan2_layouts", reason=reason
    )
    facts = json.loads((golden / "pti_trace.json").read_text())
    arrays = np.load(golden / "pti_trace.npz")
    rules = facts["fill_rules"]
    state = {
        key: torch.from_numpy(fill(key, shape, rules))
        for key, shape in facts["state_dict"]
        if not key.endswith(".kernel")
    }
    net = layouts.build(layouts.rosinality(state, torch.zeros(512)))
    context = Context("cpu", "golden", lambda name: golden)
    distance = lpips_alex(facts, fill)
    context._networks |= {("generator", "golden"): net, ("perceptual", "golden"): distance}
    stage = PivotalTuning(PivotalTuning.Options(perceptual="golden", steps=4, stop=0))
    stage.setup(context)
    ws = torch.from_numpy(fill("in.wplus", (1, 12, 512)))
    target = 0.5 * torch.from_numpy(fill("in.target", (1, 3, 32, 32)))
    target = target.repeat_interleave(4, 2).repeat_interleave(4, 3)

    seen: dict[str, list[float]] = {}

    def record(delta):
        for key, name in RECORDED.items():
            moved = delta[name].detach().double()
            now = net.weight(name).double() + moved
            seen.setdefault(f"sum.{key}", []).append(now.sum().item())
            seen.setdefault(f"sumsq.{key}", []).append(now.square().sum().item())
            seen.setdefault(f"moved.{key}", []).append(moved.square().sum().item())

    synthesize = net.synthesize

    def synthesize_and_record(ws, delta):
        record(delta)
        image = synthesize(ws, delta)
        with torch.no_grad():
            lpips = distance.distance(image, distance.features(target)).item()
        mse = (image - target).square().mean().item()
        for key, value in (("lpips", lpips), ("mse", mse), ("loss", lpips + mse)):
            seen.setdefault(key, []).append(value)
        return image

    monkeypatch.setattr(net, "synthesize", synthesize_and_record)
    result = stage.refine(target, ws, torch.ones(1, 1, 128, 128))
    monkeypatch.undo()
    record(result.delta)

    assert len(seen["loss"]) == 4
    for name, values in seen.items():
        # Weights are recorded before the first step as well.
        found = np.array(values[-4:])
        assert np.abs(found - arrays[name]).max() <= facts["outputs"][name]["tolerance_abs"], name
    with torch.no_grad():
        final = torch.nn.functional.avg_pool2d(net.synthesize(ws, result.delta), 2).numpy()
    limit = facts["outputs"]["image_final_64"]["tolerance_abs"]
    assert np.abs(final - arrays["image_final_64"]).max() <= limit
