"""A refinement does not depend on how a network is written."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.refine.ablations import FeatureModulation, WeightModulation
from dhr_batch.stages.refine.base import Refinement, render
from dhr_batch.stages.refine.dhr import HybridRefinement, tuned_weights
from dhr_batch.stages.refine.pti import PivotalTuning
from dhr_batch.stages.refine.rotated_adam import RotatedAdam, scales
from dhr_batch.tests.stages import rewritten

MEMBERS = {
    "dhr": (HybridRefinement, {}),
    "weights": (WeightModulation, {}),
    "feature": (FeatureModulation, {}),
    "pti": (PivotalTuning, {"rates": "relative", "rate": 0.003, "steps": 30, "stop": 0}),
}
NETS = ("mobilestylegan", "stylegan2")


@pytest.fixture(scope="module")
def nets() -> dict[str, Generator]:
    return rewritten.generators()


def stage_of(member: str, net: Generator, **options: Any) -> Any:
    cls, own = MEMBERS[member]
    stage = cls(cls.Options(perceptual="tiny", **own | options))
    context = Context("cpu", "tiny", lambda name: None)
    context._networks["generator", "tiny"] = net
    perceptual = context.network("perceptual", "tiny")
    perceptual.to(net.w_mean.dtype)
    stage.setup(context)
    return stage


def photographs(net: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images the generator cannot render exactly, codes near them, and half-and-half masks."""
    draw, dtype = torch.Generator().manual_seed(1), net.w_mean.dtype
    with torch.no_grad():
        ws = net.broadcast(net.map(torch.randn(2, 512, generator=draw).to(dtype)))
        images = net.synthesize(ws) + 0.5 * torch.randn(2, 3, 1, 32, generator=draw).to(dtype)
    masks = torch.zeros(2, 1, 32, 32, dtype=dtype)
    masks[:, :, :, 10:] = 1
    return images, ws, masks


def picture(net: Generator, ws: Tensor, result: Refinement, masks: Tensor) -> Tensor:
    with torch.no_grad():
        return render(net, ws, result, masks)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("name", NETS)
def test_factors_that_are_powers_of_two_change_no_bit(
    nets: dict[str, Generator], name: str, member: str
) -> None:
    net = nets[name]
    factors = rewritten.powers_of_two(net)
    other = rewritten.with_factors(net, factors)
    images, ws, masks = photographs(net)
    one = stage_of(member, net).refine(images, ws, masks)
    two = stage_of(member, other).refine(images, ws, masks)
    moved = [weight for weight, value in one.delta.items() if value.any()]
    assert moved or member == "feature"
    for weight, value in one.delta.items():
        assert torch.equal(two.delta[weight], value * factors[weight]), weight
    if one.feature is not None:
        assert torch.equal(one.feature, two.feature)
    after = picture(net, ws, one, masks)
    assert torch.equal(picture(other, ws, two, masks), after)
    assert (after - picture(net, ws, Refinement({}), masks)).norm() > 1e-2 * after.norm()


@pytest.mark.parametrize(
    ("member", "factors"),
    [("dhr", rewritten.equalised), *((member, rewritten.any_factors) for member in MEMBERS)],
)
@pytest.mark.parametrize("name", NETS)
def test_any_factors_change_the_result_within_rounding(
    nets: dict[str, Generator], name: str, member: str, factors: Any
) -> None:
    net = copy.deepcopy(nets[name]).double()
    known = factors(net)
    other = rewritten.with_factors(net, known)
    images, ws, masks = photographs(net)
    one = stage_of(member, net).refine(images, ws, masks)
    two = stage_of(member, other).refine(images, ws, masks)
    for weight, value in one.delta.items():
        difference = (two.delta[weight] / known[weight] - value).norm()
        assert difference <= 1e-6 * value.norm(), weight
    if one.feature is not None:
        assert (one.feature - two.feature).norm() <= 1e-6 * one.feature.norm()
    after = picture(net, ws, one, masks)
    assert (picture(other, ws, two, masks) - after).norm() <= 1e-6 * after.norm()


@pytest.mark.parametrize("name", NETS)
def test_the_first_relative_gradients_are_equal_in_single_precision(
    nets: dict[str, Generator], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nets[name]
    other = rewritten.with_factors(net, rewritten.any_factors(net))
    images, ws, masks = photographs(net)
    found: list[list[Tensor]] = []
    step = RotatedAdam.step

    def noted(self: RotatedAdam, grads: Any, rate: float) -> None:
        if self.steps == 0:
            found[-1] += [g * c for g, c in zip(grads, self.scales, strict=True)]
        step(self, grads, rate)

    monkeypatch.setattr(RotatedAdam, "step", noted)
    for each in (net, other):
        found.append([])
        stage_of("dhr", each, steps=1, weight_share=1).refine(images, ws, masks)
    assert len(found[0]) > 1
    one, two = (torch.cat([grad.flatten() for grad in grads]) for grads in found)
    assert (one - two).norm() <= 1e-5 * one.norm()


@pytest.mark.parametrize("member", ["dhr", "weights", "pti"])
def test_absolute_rates_depend_on_how_a_network_is_written(
    nets: dict[str, Generator], member: str
) -> None:
    """So the tests above can fail."""
    net = nets["stylegan2"]
    other = rewritten.with_factors(net, rewritten.powers_of_two(net))
    images, ws, masks = photographs(net)
    pictures = []
    for each in (net, other):
        result = stage_of(member, each, rates="absolute", steps=8).refine(images, ws, masks)
        pictures.append(picture(each, ws, result, masks))
    assert (pictures[0] - pictures[1]).norm() > 1e-3 * pictures[0].norm()


def test_the_smallest_layer_is_relative_to_the_feature_layer(nets: dict[str, Generator]) -> None:
    net = nets["stylegan2"]
    images, ws, masks = photographs(net)
    assert net.feature_shape[1] == 8
    for smallest_layer, size in ((16, 2), (64, 8), (100, 12.5)):
        options = {"steps": 1, "smallest_layer": smallest_layer}
        result = stage_of("weights", net, **options).refine(images, ws, masks)
        assert list(result.delta) == tuned_weights(net, size)
    assert len({len(tuned_weights(net, size)) for size in (2, 8, 12.5)}) == 3


def test_a_scale_is_that_of_the_weights_of_an_output() -> None:
    weight = torch.tensor([[3.0, -3.0], [0.5, 0.5], [0.0, 0.0]])
    whole = (18.5 / 6) ** 0.5
    torch.testing.assert_close(scales(weight), torch.tensor([[3.0], [0.5], [whole]]))
    torch.testing.assert_close(scales(torch.tensor([3.0, 0.0])), torch.tensor([4.5**0.5]))
    assert not scales(torch.zeros(4, 2)).any()
    torch.testing.assert_close(scales(torch.ones(4, 2, 3, 3)), torch.full((4, 1, 1, 1), 1 / 3))
