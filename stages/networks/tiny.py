"""Small networks with seeded random weights, for tests and first trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.perceptual import Perceptual

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context


def generator(context: Context) -> MobileStyleGAN:
    """Return a MobileStyleGAN at 32 px with random weights."""
    net = MobileStyleGAN((32, 32, 32), head="haar", feature_block=0, num_ws=8)
    fill(net)
    with torch.no_grad():
        net.weight("to_img.weight").mul_(
            0.5 / net.synthesize(net.broadcast(net.w_mean[None])).std()
        )
    return net.to(context.device).eval()


def fill(net: Generator) -> None:
    """Give a generator random weights with which all layers keep about unit variance."""
    draw = torch.Generator().manual_seed(0)
    for name in net.weight_names():
        weight = net.weight(name)
        if name.endswith("modulation.bias"):
            weight.fill_(1.0)
        elif weight.ndim > 1:
            # Styled convolutions divide by their fan-in.
            styled = not name.startswith("mapping.") and "modulation" not in name
            gain = 1.0 if styled else weight.shape[1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=draw) * gain)
    net.set_w_mean()


def perceptual(context: Context) -> Perceptual:
    """Return a shift-tolerant LPIPS with an AlexNet of an eighth of the width, random weights."""
    draw = torch.Generator().manual_seed(0)
    widths, sizes, inputs = (8, 24, 48, 32, 32), (11, 5, 3, 3, 3), (3, 8, 24, 48, 32)
    weights: dict[str, Tensor] = {}
    for i, (out, size, inp) in enumerate(zip(widths, sizes, inputs, strict=True)):
        kernel = torch.randn(out, inp, size, size, generator=draw) / (inp * size**2) ** 0.5
        weights |= {f"features.{i}.weight": kernel, f"features.{i}.bias": torch.zeros(out)}
        weights[f"lin{i}.model.1.weight"] = torch.ones(1, out, 1, 1)
    return Perceptual("st_tiny_alex", weights).to(context.device)
