"""Write a generator in another way that renders the same pictures."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2


def generators() -> dict[str, Generator]:
    """Random generators at 32 px of both architectures. All their weights differ from 0."""
    context = Context("cpu", "tiny", lambda name: None)  # type: ignore[arg-type, return-value]
    mobile, stylegan2 = context.network("generator", "tiny"), StyleGAN2((16, 12, 8, 8), 3, 2)
    draw = torch.Generator().manual_seed(0)
    for net in (mobile, stylegan2):
        for name in net.weight_names():
            weight = net.weight(name)
            if net is stylegan2 or not weight.any():
                weight.copy_(0.3 * torch.randn(weight.shape, generator=draw))
            # As in trained networks, outputs of a layer differ in size by far.
            if weight.ndim > 1 and not name.startswith("mapping."):
                shape = len(weight), *[1] * (weight.ndim - 1)
                tail = 0.7 if net is stylegan2 else 0.5
                weight.mul_((tail * torch.randn(shape, generator=draw)).exp())
        for name in net.noise_names:
            net.noise(name).copy_(0.1 * torch.randn(net.noise(name).shape, generator=draw))
    for net in (mobile, stylegan2):
        head = [name for name in net.weight_names("to_") if name.endswith(("weight", "bias"))]
        net.set_w_mean()
        with torch.no_grad():
            size = net.synthesize(net.broadcast(net.w_mean[None])).std()
            for name in head:
                if "modulation" not in name:
                    net.weight(name).mul_(0.5 / size)
    return {"mobilestylegan": mobile, "stylegan2": stylegan2}


def powers_of_two(net: Generator) -> dict[str, float]:
    """Random factors over four decades for all weights of the synthesis, exact in binary."""
    draw = torch.Generator().manual_seed(3)
    names = [name for name in net.weight_names() if not name.startswith("mapping.")]
    exponents = torch.randint(-7, 7, (len(names),), generator=draw).tolist()
    return {name: 2.0**k for name, k in zip(names, exponents, strict=True)}


def any_factors(net: Generator) -> dict[str, float]:
    """Random factors over four decades for all weights of the synthesis."""
    draw = torch.Generator().manual_seed(4)
    names = [name for name in net.weight_names() if not name.startswith("mapping.")]
    exponents = (4 * torch.rand(len(names), generator=draw) - 2).tolist()
    return {name: 10.0**k for name, k in zip(names, exponents, strict=True)}


def equalised(net: Generator) -> dict[str, float]:
    """The factors of equalised learning rates: all stored kernels have unit variance."""
    names = [name for name in net.weight_names() if not name.startswith("mapping.")]
    return {n: 1 / float(net.weight(n).square().mean().sqrt()) for n in names}


def with_factors(net: Generator, factors: Mapping[str, float]) -> Generator:
    """Return a copy that stores each weight times its factor, and divides where it is used."""
    copied = copy.deepcopy(net)
    for name, factor in factors.items():
        copied.weight(name).mul_(factor)
    get = type(net)._get

    def divided(self: Any, name: str, delta: Mapping[str, Tensor] | None, batch: int) -> Tensor:
        return get(self, name, delta, batch) / factors.get(name, 1.0)

    copied._get = MethodType(divided, copied)  # type: ignore[method-assign]
    return copied


def with_longer_codes(net: Generator, factor: float) -> Generator:
    """Return a copy whose codes are `factor` times as long, with modulations that undo it."""
    copied = copy.deepcopy(net)
    last = f"mapping.{net.mapping_layers - 1}."
    for name in copied.weight_names():
        if name.startswith(last):
            copied.weight(name).mul_(factor)
        elif name.endswith("modulation.weight"):
            copied.weight(name).div_(factor)
    copied.w_mean.mul_(factor)
    return copied
