"""Embedding does not depend on how long the codes of a generator are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.embed import optimise
from dhr_batch.stages.embed.optimise import OptimiseW, OptimiseWPlus, spread
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.tests.stages import rewritten

MEMBERS = {
    "w": (OptimiseW, {}),
    "prior": (OptimiseW, {"prior": 0.3}),
    "w+": (OptimiseWPlus, {"w_share": 0.5}),
}


@pytest.fixture(scope="module")
def nets() -> dict[str, Generator]:
    return rewritten.generators()


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for all axes of the codes; more of them make every embedder slower to set up."""
    monkeypatch.setattr(optimise, "_SAMPLES", 2048)


def embedded(member: str, net: Generator, **options: Any) -> Tensor:
    """The codes of two pictures that the generator cannot render."""
    cls, own = MEMBERS[member]
    stage = cls(cls.Options(perceptual="tiny", **{"steps": 20} | own | options))
    context = Context("cpu", "tiny", lambda name: None)
    context._networks["generator", "tiny"] = net
    context.network("perceptual", "tiny").to(net.w_mean.dtype)
    stage.setup(context)
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(2, 3, 8, 8, generator=draw).to(net.w_mean.dtype)
    return stage.embed(images.repeat_interleave(4, 2).repeat_interleave(4, 3))


def pictures(net: Generator, codes: Tensor) -> Tensor:
    with torch.no_grad():
        return net.synthesize(codes)


def direction(net: Generator) -> Tensor:
    """An edit direction as long as a step of the codes, [512]."""
    step = torch.randn(512, generator=torch.Generator().manual_seed(6))
    return net.expand_direction(step.to(net.w_mean))


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(("name", "factor"), [("mobilestylegan", 2.0**-5), ("stylegan2", 2.0**6)])
def test_codes_a_power_of_two_as_long_change_no_bit(
    nets: dict[str, Generator], name: str, member: str, factor: float
) -> None:
    net = nets[name]
    other = rewritten.with_longer_codes(net, factor)
    one, two = embedded(member, net), embedded(member, other)
    assert (one - net.w_mean).norm() > 0.1 * spread(net)
    assert torch.equal(two, one * factor)
    assert torch.equal(pictures(other, two), pictures(net, one))
    edited = pictures(net, one + 1.5 * direction(net))
    assert torch.equal(pictures(other, two + 1.5 * factor * direction(net)), edited)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize(("name", "factor"), [("mobilestylegan", 170.0), ("stylegan2", 0.01)])
def test_codes_of_any_length_change_the_result_within_rounding(
    nets: dict[str, Generator], name: str, member: str, factor: float
) -> None:
    net = copy.deepcopy(nets[name]).double()
    other = rewritten.with_longer_codes(net, factor)
    one, two = embedded(member, net), embedded(member, other)
    assert (two / factor - one).norm() <= 1e-6 * one.norm()
    edits = (one + direction(net), two + factor * direction(net))
    for codes, longer in ((one, two), edits):
        before = pictures(net, codes)
        assert (pictures(other, longer) - before).norm() <= 1e-6 * before.norm()


@pytest.mark.parametrize("member", ["w", "w+"])
def test_absolute_rates_depend_on_the_length_of_codes(
    nets: dict[str, Generator], member: str
) -> None:
    """So the tests above can fail."""
    net = nets["stylegan2"]
    other = rewritten.with_longer_codes(net, 64.0)
    one, two = (embedded(member, each, rates="absolute") for each in (net, other))
    before = pictures(net, one)
    assert (pictures(other, two) - before).norm() > 1e-2 * before.norm()


def test_the_spread_is_that_of_the_samples(nets: dict[str, Generator]) -> None:
    net = nets["stylegan2"]
    with torch.no_grad():
        codes = net.map(torch.randn(20_000, 512, generator=torch.Generator().manual_seed(9)))
    expected = (codes - codes.mean(0)).square().mean().sqrt()
    assert spread(net) == pytest.approx(float(expected), rel=0.02)
