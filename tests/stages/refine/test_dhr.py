"""Refinement: exactness in a batch, degenerate masks, and which loss moves what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators import stylegan2_layouts
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.record import Record
from dhr_batch.stages.refine import dhr
from dhr_batch.stages.refine.base import NoRefinement, render
from dhr_batch.stages.refine.dhr import HybridRefinement, tuned_weights


@pytest.fixture
def context() -> Context:
    def no_models(name):
        raise AssertionError(f"asked for {name}")

    return Context("cpu", "tiny", no_models)


@pytest.fixture
def stylegan2(tmp_path: Path) -> Context:
    """Narrow and random, 32 px; its feature layer has 8 px."""
    net, draw = StyleGAN2((8, 6, 5, 4), mapping_layers=2), torch.Generator().manual_seed(0)
    for tensor in stylegan2_layouts.named_tensors(net).values():
        tensor.data.copy_(0.5 * torch.randn(tensor.shape, generator=draw))
    stylegan2_layouts.save(net, tmp_path / "mine.safetensors", {})
    return Context("cpu", str(tmp_path / "mine.safetensors"), lambda name: Path())


def refiner(context: Context, **options) -> HybridRefinement:
    stage = HybridRefinement(HybridRefinement.Options(perceptual="tiny", **options))
    stage.setup(context)
    return stage


def photographs(context: Context, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images the generator cannot render exactly, codes near them, and half-and-half masks."""
    net = context.network("generator", context.generator)
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


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_in_and_all_out_are_legal_on_stylegan2(stylegan2, value):
    images, ws, masks = photographs(stylegan2, 1)
    masks.fill_(value)
    result = refiner(stylegan2, steps=10, smallest_layer=4).refine(images, ws, masks)
    start = stylegan2.network("generator", stylegan2.generator).to_feature(ws)
    assert all(torch.isfinite(d).all() for d in result.delta.values())
    assert all(d.any() for d in result.delta.values())
    assert torch.isfinite(result.feature).all()
    assert torch.equal(result.feature, start) == (value == 1.0)


def test_heads_have_the_size_of_what_they_make(stylegan2):
    net = stylegan2.network("generator", stylegan2.generator)
    heads = {
        size: [n for n in tuned_weights(net, size) if n.startswith("to_")] for size in (4, 8, 16)
    }
    assert heads[4] == [f"{n}.weight" for n in ("to_rgb1", "to_rgbs.0", "to_rgbs.1", "to_rgbs.2")]
    assert heads[8] == heads[4][1:]
    assert heads[16] == heads[4][2:]
    layers = [n for n in tuned_weights(net, 16) if n.startswith("conv")]
    assert layers == [f"convs.{k}.weight" for k in (2, 3, 4, 5)]


def test_the_only_head_is_moved_at_any_size(context):
    net = context.network("generator", "tiny")
    assert tuned_weights(net, 1024) == ["to_img.weight"]


@pytest.mark.parametrize(
    "options",
    [{"steps": 2, "weight_share": 1.0}, pytest.param({}, marks=pytest.mark.slow)],
    ids=["short", "full"],
)
def test_batched_equals_single_in_single_precision(
    models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The first losses and gradients within rounding; Adam amplifies that, so pictures are compared
    by PSNR."""
    context = Context("cpu", "mobilestylegan-256", models)
    stage = HybridRefinement(HybridRefinement.Options(**options))
    stage.setup(context)
    net, draw = stage.generator, torch.Generator().manual_seed(0)
    with torch.no_grad():
        ws = net.broadcast(net.map(torch.randn(2, 512, generator=draw), 0.7))
        images = net.synthesize(ws.flip(0)).clamp(-1, 1)
    masks = torch.zeros(2, 1, 256, 256)
    masks[:, :, :, 90:] = 1
    terms: list[torch.Tensor] = []
    mean = dhr._part_mean

    def kept(*arguments: torch.Tensor) -> torch.Tensor:
        terms.append(mean(*arguments))
        return terms[-1]

    monkeypatch.setattr(dhr, "_part_mean", kept)
    gradients: list[tuple[torch.Tensor, ...]] = []
    grad = torch.autograd.grad

    def noted(*arguments: Any, **others: Any) -> tuple[torch.Tensor, ...]:
        gradients.append(grad(*arguments, **others))
        return gradients[-1]

    monkeypatch.setattr(torch.autograd, "grad", noted)

    def run(part: slice) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
        terms.clear()
        gradients.clear()
        result = stage.refine(images[part], ws[part], masks[part])
        first = torch.stack(terms[: len(terms) // stage.options.steps]).sum(0).detach()
        with torch.no_grad():
            error = render(net, ws[part], result, masks[part]) - images[part]
        return first, gradients[0], -10 * torch.log10(error.square().mean((1, 2, 3)))

    losses, both, psnr = run(slice(0, 2))
    for i in range(2):
        loss, own, alone = run(slice(i, i + 1))
        torch.testing.assert_close(losses[i : i + 1], loss, rtol=1e-5, atol=0)
        for together, single in zip(both, own, strict=True):
            # Rounding takes units of the perceptual network across the kinks of ReLU and pooling.
            # These gradients then differed by up to 0.0004 with AVX-512 and 0.0015 with AVX2, on
            # one machine; the gradient of the other image differed by 0.84.
            assert (together[i] - single[0]).norm() <= 1e-2 * single.norm()
        assert (psnr[i] - alone[0]).abs() < 0.1


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
