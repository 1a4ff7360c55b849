"""A narrow StyleGAN2 of 64 px and files of HFGI's layout for it, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dhr_batch.stages.networks.encoders import Encoder
from dhr_batch.stages.networks.hfgi import ALIGNER, CONSULTATION, Aligner, Consultation
from dhr_batch.stages.networks.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.stylegan2_layouts import named_tensors

WIDTHS = (16, 16, 16, 16, 16)
ROWS = 10


@torch.no_grad()
def stylegan2(widths: tuple[int, ...] = WIDTHS) -> StyleGAN2:
    """Return a generator with these widths at 4, 8, ... px."""
    net = StyleGAN2(widths, mapping_layers=1)
    draw = torch.Generator().manual_seed(0)
    for name, value in named_tensors(net).items():
        value.copy_(torch.randn(value.shape, generator=draw))
        if name.endswith("modulation.bias"):
            value.add_(1)
        elif name.endswith(("bias", "noise_strength")) or "rgb" in name:
            value.mul_(0.1)
    return net.eval()


def checkpoint(width: int = 16, rows: int = ROWS) -> dict[str, Any]:
    """Return the content of a file whose conditions have `width` channels."""
    parts = {
        ALIGNER: Aligner(),
        CONSULTATION: Consultation(width),
        "encoder.": Encoder(shared=True, heads=rows, width=8),
        "decoder.": nn.Linear(2, 2),
    }
    draw = torch.Generator().manual_seed(0)
    state = {}
    for prefix, net in parts.items():
        for name, value in net.state_dict().items():
            noise = torch.randn(value.shape, generator=draw)
            if name.endswith("running_var"):
                value = 1 + 0.1 * noise.abs()
            elif value.ndim > 1:
                value = noise if "condition" in name else noise / value[0].numel() ** 0.5
            elif value.is_floating_point():
                value = (0.0 if name.endswith("bias") or "mean" in name else 0.5) + 0.1 * noise
            state[prefix + name] = value
    mean = torch.randn(rows, 512, generator=draw)
    return {"state_dict": state, "latent_avg": mean, "opts": {"start_from_latent_avg": True}}
