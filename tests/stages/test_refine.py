"""Refinement: exactness in a batch, degenerate masks, and which loss moves what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhr_batch.stages.base import Context, Record
from dhr_batch.stages.refine import NoRefinement, render
from dhr_batch.stages.refine_dhr import HybridRefinement


@pytest.fixture
def context() -> Context:
    def no_models(name):
        raise AssertionError(f"asked for {name}")

    return Context("cpu", "tiny", no_models)


def refiner(context: Context, **options) -> HybridRefinement:
    stage = HybridRefinement(HybridRefinement.Options(perceptual="tiny", **options))
    stage.setup(context)
    return stage


def photographs(context: Context, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images the generator cannot render exactly, codes near them, and half-and-half masks."""
    net = context.network("generator", "tiny")
    draw = torch.Generator().manual_seed(1)
    dtype = net.w_mean.dtype
    with torch.no_grad():
        ws = net.broadcast(net.map(torch.randn(count, 512, generator=draw).to(dtype)))
        images = net.synthesize(ws) + 0.5 * torch.randn(count, 3, 1, 32, generator=draw).to(dtype)
    masks = torch.zeros(count, 1, 32, 32, dtype=dtype)
    masks[:, :, :, 10:] = 1
    return images, ws, masks


def part_error(image: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return ((image - target).square().mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum(
        (1, 2, 3)
    )


def test_both_parts_come_closer(context):
    images, ws, masks = photographs(context, 2)
    net = context.network("generator", "tiny")
    result = refiner(context, steps=60, weight_rate=2e-2, feature_rate=0.2).refine(
        images, ws, masks
    )
    with torch.no_grad():
        before = net.synthesize(ws)
        after = render(net, ws, result, masks)
    for mask in (masks, 1 - masks):
        assert (part_error(after, images, mask) < 0.7 * part_error(before, images, mask)).all()


def test_batched_equals_single(context):
    context.network("generator", "tiny").double()
    context.network("perceptual", "tiny").double()
    images, ws, masks = photographs(context, 3)
    masks[1], masks[2] = 1, 0
    stage = refiner(context, steps=20)
    batch = stage.refine(images, ws, masks)
    for i in range(3):
        one = slice(i, i + 1)
        single = stage.refine(images[one], ws[one], masks[one])
        assert (batch.feature[one] - single.feature).abs().max() < 1e-6
        for name, value in single.delta.items():
            assert (batch.delta[name][one] - value).abs().max() < 1e-6, name


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_in_and_all_out_are_legal(context, value):
    images, ws, masks = photographs(context, 1)
    masks.fill_(value)
    result = refiner(context, steps=10, smallest_layer=4).refine(images, ws, masks)
    net = context.network("generator", "tiny")
    before = [n for n in result.delta if n.startswith(f"layers.{net.feature_block}.")]
    moved = max(result.delta[n].abs().max().item() for n in before)
    with torch.no_grad():
        start = net.to_feature(ws)
    assert all(torch.isfinite(d).all() for d in result.delta.values())
    assert torch.isfinite(result.feature).all()
    # Without an in-domain part nothing may move the weights before the feature; without an
    # out-of-domain part nothing may move the feature.
    assert (moved > 0) == (value == 1.0)
    assert torch.equal(result.feature, start) == (value == 1.0)


def test_no_refinement_returns_the_inversion(context):
    stage = NoRefinement(NoRefinement.Options())
    stage.setup(context)
    net = context.network("generator", "tiny")
    ws = net.broadcast(net.w_mean[None])[0].numpy().copy()
    image = np.zeros((32, 32, 3), np.uint8)
    record = Record("a.png", "a.png", image=image, latent=ws, mask=np.ones((32, 32), bool))
    (done,) = stage.run([record])
    assert done.failure is None
    assert done.delta == {}
    assert done.feature is None


def test_a_diverging_image_is_quarantined_alone(context):
    _, ws, _ = photographs(context, 2)
    codes = ws.numpy().copy()
    codes[1] = np.nan
    stage = refiner(context, steps=2)
    records = [
        Record(
            f"{i}.png",
            f"{i}.png",
            image=np.zeros((32, 32, 3), np.uint8),
            latent=codes[i],
            mask=np.ones((32, 32), bool),
        )
        for i in range(2)
    ]
    good, bad = stage.run(records)
    assert good.failure is None
    assert bad.failure is not None
    assert bad.failure.error_class == "ArithmeticError"
    assert good.refined is not None
