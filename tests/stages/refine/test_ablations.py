"""The halves of hybrid refinement: what moves, and which part of the picture it serves."""

from __future__ import annotations

import pytest
import torch

from dhr_batch.stages.context import Context
from dhr_batch.stages.refine.ablations import FeatureModulation, WeightModulation
from dhr_batch.stages.refine.base import render
from dhr_batch.stages.refine.dhr import HybridRefinement


def build(context: Context, member, **options):
    stage = member(member.Options(perceptual="tiny", **options))
    stage.setup(context)
    return stage


@pytest.fixture
def photographs(context):
    """Images the generator cannot render exactly, codes near them, and half-and-half masks."""
    net = context.network("generator", "tiny")
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        ws = net.broadcast(net.map(torch.randn(3, 512, generator=draw).double()))
        images = net.synthesize(ws) + 0.5 * torch.randn(3, 3, 1, 32, generator=draw).double()
    masks = torch.zeros(3, 1, 32, 32).double()
    masks[:, :, :, 10:] = 1
    return images, ws, masks


def errors(context: Context, photographs, result) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error in-domain and out-of-domain, [B] each."""
    images, ws, masks = photographs
    with torch.no_grad():
        image = render(context.network("generator", "tiny"), ws, result, masks)
    squared = (image - images).square().mean(1, keepdim=True)
    inner, outer = ((squared * m).sum((1, 2, 3)) / m.sum((1, 2, 3)) for m in (masks, 1 - masks))
    return inner, outer


def test_weights_alone_serve_the_in_domain_part(context, photographs):
    stage = build(context, WeightModulation, steps=40, weight_rate=2e-2)
    result = stage.refine(*photographs)
    before = errors(
        context, photographs, build(context, WeightModulation, steps=0).refine(*photographs)
    )
    after = errors(context, photographs, result)
    assert result.feature is None
    assert (after[0] < 0.7 * before[0]).all()
    # Without an in-domain part there is nothing that could move a weight.
    images, ws, masks = photographs
    assert not any(v.any() for v in stage.refine(images, ws, 0 * masks).delta.values())


def test_the_feature_alone_serves_the_out_of_domain_part(context, photographs):
    stage = build(context, FeatureModulation, steps=40, feature_rate=0.4)
    result = stage.refine(*photographs)
    before = errors(
        context, photographs, build(context, FeatureModulation, steps=0).refine(*photographs)
    )
    after = errors(context, photographs, result)
    assert result.delta == {}
    assert (after[1] < 0.7 * before[1]).all()
    images, ws, masks = photographs
    start = context.network("generator", "tiny").to_feature(ws)
    assert torch.equal(stage.refine(images, ws, 0 * masks + 1).feature, start)


def test_feature_is_hybrid_refinement_without_weight_steps(context, photographs):
    alone = build(context, FeatureModulation, steps=5).refine(*photographs)
    hybrid = build(context, HybridRefinement, steps=5, weight_share=0).refine(*photographs)
    assert torch.equal(alone.feature, hybrid.feature)


@pytest.mark.parametrize("member", [WeightModulation, FeatureModulation])
def test_batched_equals_single(context, photographs, member):
    stage = build(context, member, steps=20)
    batch = stage.refine(*photographs)
    for i in range(3):
        one = slice(i, i + 1)
        single = stage.refine(*(part[one] for part in photographs))
        for name, value in single.delta.items():
            assert (batch.delta[name][one] - value).abs().max() < 1e-6, name
        if batch.feature is not None:
            assert (batch.feature[one] - single.feature).abs().max() < 1e-6
