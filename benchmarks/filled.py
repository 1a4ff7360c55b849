"""Networks of published shapes with random weights: they cost what the published ones cost.

Named as members of another package are, `dhr_batch.benchmarks.filled:stylegan2_256`.
"""

from __future__ import annotations

import torch

from dhr_batch.stages.base import Context
from dhr_batch.stages.networks.stylegan2 import StyleGAN2, config_f


def stylegan2_256(context: Context) -> StyleGAN2:
    """StyleGAN2, configuration F at 256 px."""
    net = StyleGAN2(config_f(256))
    draw = torch.Generator().manual_seed(0)
    for name in net.weight_names():
        weight = net.weight(name)
        if name.endswith("modulation.bias"):
            weight.fill_(1.0)
        elif weight.ndim > 1:
            gain = weight.shape[1] ** -0.5 if name.startswith("mapping.") else 1.0
            weight.copy_(torch.randn(weight.shape, generator=draw) * gain)
    net.set_w_mean()
    return net.to(context.device).eval()
