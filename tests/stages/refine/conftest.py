"""A SAM refiner of a narrow generator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks import tiny
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.refine import sam
from dhr_batch.stages.refine.sam import SpatiallyAdaptive
from dhr_batch.tests.stages.spatial import Build, Halves


@pytest.fixture(scope="module")
def narrow() -> StyleGAN2:
    """A generator of 256 px with random weights and eight channels, in float64, with all levels."""
    net = StyleGAN2((8,) * 7)
    draw = torch.Generator().manual_seed(0)
    for name in net.weight_names():
        weight = net.weight(name)
        if name.endswith("modulation.bias"):
            weight.fill_(1.0)
        elif weight.ndim > 1:
            gain = weight.shape[1] ** -0.5 if name.startswith("mapping.") else 1.0
            weight.copy_(torch.randn(weight.shape, generator=draw) * gain)
    for i in range(6):
        net.weight(f"to_rgbs.{i}.weight").mul_(0.2)
    return net.double().eval()


@pytest.fixture(scope="module")
def prior(narrow: StyleGAN2) -> sam.CodePrior:
    return sam.CodePrior(narrow)


@pytest.fixture
def build(narrow: StyleGAN2, prior: sam.CodePrior, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Maker of a refiner of the narrow generator with that parser. They share their prior."""
    monkeypatch.setattr(sam, "CodePrior", lambda net: prior)

    def make(**options: Any) -> SpatiallyAdaptive:
        def no_models(name: str) -> Any:
            raise AssertionError(f"asked for {name}")

        context = Context("cpu", "net", no_models)
        context._networks["generator", "net"] = narrow
        context._networks["perceptual", "tiny"] = tiny.perceptual(context).double()
        context._networks["parser", "halves"] = Halves()
        chosen = {"perceptual": "tiny", "parser": "halves", **options}
        stage = SpatiallyAdaptive(SpatiallyAdaptive.Options(**chosen))
        stage.setup(context)
        return stage

    return make
