"""The published loops of DHR, step by step, on a filled generator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.embed import projection
from dhr_batch.stages.networks import tiny
from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.refine import dhr
from dhr_batch.stages.refine.base import Refinement, render
from dhr_batch.stages.refine.published import PublishedRefinement
from dhr_batch.stages.segment import DomainSpecific
from dhr_batch.stages.tensors import feature_mask

Case = Callable[[str], Any]


def generator(case: Any) -> StyleGAN2:
    return layouts.build(layouts.rosinality(case.state(), torch.zeros(512)))


def enlarged(image: Tensor, factor: int) -> Tensor:
    return image.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def context_of(net: Any, seed: int = 0) -> Context:
    """A context with that generator, which loads no model."""

    def no_models(name: str) -> Any:
        raise AssertionError(f"asked for {name}")

    context = Context("cpu", "net", no_models, seed=seed)
    context._networks["generator", "net"] = net
    return context


def refine(
    case: Any, dtype: torch.dtype, **options: Any
) -> tuple[StyleGAN2, Tensor, Tensor, Refinement]:
    """The published settings but for the number of steps: net, codes, masks and the result."""
    net = generator(case).to(dtype)
    assert net.feature_layer == 7

    context = context_of(net)
    context._networks["perceptual", "p"] = case.perceptual().to(dtype)
    stage = PublishedRefinement(
        PublishedRefinement.Options(perceptual="p", perceptual_size=128, **options)
    )
    stage.setup(context)
    masks = enlarged(case.input("mask_lowres"), 3)[:128, :128].gt(0).to(dtype)[None, None]
    ws = case.input("wplus").to(dtype)
    images = enlarged(case.input("target_lowres"), 4).to(dtype)
    return net, ws, masks, stage.refine(images, ws, masks)


@pytest.mark.parametrize(
    ("steps", "dtype"),
    [(2, torch.float32), (6, torch.float64)],
)
def test_hybrid_refinement_equals_published(
    golden_case: Case, monkeypatch: pytest.MonkeyPatch, steps: int, dtype: torch.dtype
) -> None:
    """The first steps, and all of them, which leave the weights alone after the third."""
    case, losses = golden_case("dhr_refine_trace"), []
    call = dhr.MaskedLoss.__call__

    def recorded(self: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        inner, outer = call(self, image)
        losses.append((inner.item(), outer.item()))
        return inner, outer

    monkeypatch.setattr(dhr.MaskedLoss, "__call__", recorded)
    net, ws, masks, result = refine(case, dtype, steps=steps, weight_share=min(1, 3 / steps))

    for part, got in zip(("in", "out"), np.array(losses).T, strict=True):
        parts = [f"L_{part}_lpips", f"L_{part}_mse"]
        want = sum(case.arrays[name][:steps] for name in parts)
        limit = sum(case.facts["outputs"][name]["tolerance_abs"] for name in parts)
        assert np.abs(got - want).max() <= limit, part

    def check_last(name: str, value: Tensor) -> None:
        limit = case.facts["outputs"][name]["tolerance_abs"]
        assert abs(value.double().sum().item() - case.arrays[name][steps - 1]) <= limit, name

    feature, start = result.feature, net.to_feature(ws)
    assert feature is not None
    case.check("F_start_sum", start.double().sum())
    check_last("F_sum", feature)
    check_last("F_sumsq", feature.double().square())
    check_last("F_moved", (feature - start).double().square())
    names = {
        "input.input": "input",
        "conv1.conv.weight": "conv1.weight",
        "convs.3.conv.modulation.weight": "convs.3.modulation.weight",
        "convs.7.activate.bias": "convs.7.bias",
        "to_rgbs.4.conv.weight": "to_rgbs.4.weight",
    }
    for published, name in names.items():
        moved = net.weight(name) + result.delta[name][0]
        check_last(f"sum.{published}", moved)
        check_last(f"sumsq.{published}", moved.double().square())
        # Adam takes full steps along gradients near zero, whose signs float32 rounds away.
        if dtype == torch.float64:
            check_last(f"moved.{published}", result.delta[name].square())
    case.check("M_pooled", F.adaptive_avg_pool2d(masks, 32))
    if steps == 6:
        case.check("F_final_crop", feature[0, :8, 8:16, 8:16])
        with torch.no_grad():
            case.check("image_final_64", F.avg_pool2d(render(net, ws, result, masks), 2))


def test_projection_equals_published(golden_case: Case) -> None:
    case = golden_case("coarse_optim_trace")
    net, perceptual = generator(case), case.perceptual()
    mean, std = projection.statistics(net, case.input("w_stats_z"))
    case.check("w_mean", mean)
    case.check("w_std", torch.tensor(std))

    def draws() -> Iterator[Tensor]:
        for i in range(len(net.noise_names)):
            yield case.input(f"noise_init_{i}")[:, 0]
        for i in range(6):
            yield case.input(f"latent_noise_{i}")

    source = draws()

    def draw(shape: tuple[int, ...]) -> Tensor:
        value = next(source)
        assert value.shape == shape
        return value

    target = case.input("target_lowres")
    run = projection.Projector(
        net, perceptual, target, draw, steps=6, rate=0.1, w_mean=mean, w_std=std
    )
    rates, strengths, distances, penalties, latents, maps = [], [], [], [], [], []
    for i in range(6):
        rates.append(projection.learning_rate(i, 6, 0.1))
        strengths.append(projection.latent_noise(i, 6, std))
        distance, penalty = run.step()
        distances.append(distance[0])
        penalties.append(penalty[0])
        latents.append(run.w[0].detach().clone())
        maps.append(torch.stack([m.detach().flatten()[:8].clone() for m in run.noise.values()]))
    case.check("lr", torch.tensor(rates))
    case.check("latent_noise_strength", torch.tensor(strengths))
    case.check("lpips", torch.stack(distances))
    case.check("noise_reg", torch.stack(penalties))
    case.check("loss", torch.stack(distances) + 1e5 * torch.stack(penalties))
    case.check("w_after", torch.stack(latents))
    case.check("noise_after_first8", torch.stack(maps))
    errors = perceptual.maps(run.render, perceptual.features(enlarged(target, 4)))
    for i, error in enumerate(errors):
        case.check(f"delta_{i}", error)
    with torch.no_grad():
        case.check("image_64", F.avg_pool2d(run.synthesize(run.w), 2))


def random_generator() -> StyleGAN2:
    net, draw = StyleGAN2((8, 6, 5, 4), mapping_layers=1).double(), torch.Generator().manual_seed(0)
    for name, tensor in layouts.named_tensors(net).items():
        scale = 512**-0.5 if name.startswith("mapping") else 1.0
        tensor.data.copy_(scale * torch.randn(tensor.shape, generator=draw))
    return net


def projecting(net: Any, seed: int = 0) -> DomainSpecific:
    context = context_of(net, seed)
    context._networks["perceptual", "p"] = tiny.perceptual(context).double()
    options = DomainSpecific.Options(
        source="projection", coarse_steps=5, parser="none", perceptual="p"
    )
    stage = DomainSpecific(options)
    stage.setup(context)
    return stage


def test_a_projection_does_not_depend_on_batch_mates(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 32, 32, generator=draw, dtype=torch.float64) * 2 - 1
    net = random_generator()
    randn = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: randn(*a, **k).double())
    stage = projecting(net)
    together = stage._project(images, ["a", "b"])
    torch.testing.assert_close(stage._project(images[1:], ["b"]), together[1:])
    assert not torch.allclose(stage._project(images[1:], ["a"]), together[1:])
    assert not torch.allclose(projecting(net, seed=1)._project(images[1:], ["b"]), together[1:])


def test_a_projection_needs_noise_maps() -> None:
    with pytest.raises(ValueError, match="only StyleGAN2 has"):
        projecting(None)


def test_masks_of_perceptual_layers_are_as_published_or_areas() -> None:
    draw = torch.Generator().manual_seed(2)
    images = torch.rand(1, 3, 32, 32, generator=draw, dtype=torch.float64) * 2 - 1
    masks = (torch.rand(1, 1, 32, 32, generator=draw) > 0.5).double()
    net = random_generator()
    context = context_of(net)
    perceptual = context._networks["perceptual", "p"] = tiny.perceptual(context).double()
    ws = net.broadcast(net.w_mean[None])
    features = {}
    for layers in ("nearest", "area"):
        options = {"layer_masks": layers, "steps": 1, "weight_share": 0.0, "perceptual_size": 32}
        stage = PublishedRefinement(PublishedRefinement.Options(perceptual="p", **options))
        stage.setup(context)
        features[layers] = stage.refine(images, ws, masks).feature
    soft = feature_mask(masks, features["area"].shape[2:])
    start = net.to_feature(ws)
    for layers, at_layers in (("nearest", soft), ("area", None)):
        feature = start.detach().requires_grad_()
        inside, skip = net.trunk(ws)
        image = net.from_feature(torch.lerp(feature, inside, soft), ws, None, skip)
        options = PublishedRefinement.Options(perceptual="p", perceptual_size=32)
        _, outer = dhr.MaskedLoss(options, perceptual, images, masks, at_layers)(image)
        (grad,) = torch.autograd.grad(outer, [feature])
        # The first step of Adam goes a whole rate against the sign of the gradient.
        moved = features[layers] - start
        there = grad.abs() > 1e-6
        torch.testing.assert_close(
            moved[there], -options.feature_rate * grad[there].sign(), rtol=1e-3, atol=0
        )
    assert not torch.equal(features["nearest"], features["area"])
