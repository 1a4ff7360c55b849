"""Networks and published files with random weights, of few channels where the layout allows it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from dhr_batch.stages.networks.encoders.hfgi import ALIGNER, CONSULTATION, Aligner, Consultation
from dhr_batch.stages.networks.encoders.hyperstyle import CodePredictor, FactorLayers
from dhr_batch.stages.networks.encoders.psp import Encoder, WEncoder
from dhr_batch.stages.networks.encoders.style_transformer import StyleTransformer
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.generators.stylegan2_layouts import named_tensors

Checkpoint = dict[str, Any]


@torch.no_grad()
def stylegan2(widths: Sequence[int]) -> StyleGAN2:
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


def hyperstyle(widths: Sequence[int]) -> Checkpoint:
    """Return a checkpoint of HyperStyle's published layout for a generator with these widths.

    The hypernetwork has four channels in place of 64.
    """
    shapes = {0: (widths[0], widths[0])}
    for block, (wide, narrow) in enumerate(pairwise(widths)):
        shapes |= {2 + 3 * block: (narrow, wide), 3 + 3 * block: (narrow, narrow)}
    shared = [layer for layer, shape in shapes.items() if shape == shapes[0]]
    codes = CodePredictor({layer: layer in shared for layer in shapes}, width=4)
    own = codes.state_dict() | FactorLayers(shapes, shared, widths[0], code=32).state_dict()
    draw = torch.Generator().manual_seed(0)
    state = {}
    for name, value in own.items():
        noise = torch.randn(value.shape, generator=draw)
        if name.endswith(("running_var", "bn1.weight", "downsample.1.weight")):
            value = 1 + 0.1 * noise.abs()
        elif name.endswith(("bn2.weight", "relu.weight")):
            value = 0.2 + 0.02 * noise
        elif value.ndim > 1:
            gain = 0.5 if ".output." in name or "shared" in name else 2.0
            value = noise * (gain / value[0].numel()) ** 0.5
        elif value.is_floating_point():
            value = 0.1 * noise
        state[f"hypernet.{name}"] = value
    for layer in shared:
        for last in ("w1", "b1", "w2", "b2"):
            tied = state[f"hypernet.shared_weight_hypernet.{last}"]
            state[f"hypernet.refinement_blocks.{layer}.hypernet.{last}"] = tied
    state["decoder.input.input"] = torch.zeros(1, widths[0], 4, 4)
    mean = torch.randn(512, generator=draw)
    return {"state_dict": state, "latent_avg": mean.repeat(18, 1), "opts": {}}


def w_encoder() -> Checkpoint:
    """Return a checkpoint of HyperStyle's W encoder, an eighth as wide as published."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = {f"encoder.{k}": v for k, v in WEncoder(width=8).state_dict().items()}
        return {"state_dict": state, "latent_avg": torch.randn(512).repeat(18, 1)}


def style_transformer() -> Checkpoint:
    """Return a checkpoint of Style Transformer's published layout, which has only one width."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, mapping = StyleTransformer(), torch.nn.Linear(512, 512)
        rows = len(net.queries)
        state = {f"encoder.{k}": v for k, v in net.state_dict().items() if k != "queries"}
        state |= {f"decoder.style.1.{k}": v for k, v in mapping.state_dict().items()}
        state["encoder.z"] = torch.randn(1, rows, 512)
        return {"state_dict": state, "latent_avg": torch.randn(rows, 512)}


def hfgi(width: int, rows: int = 18) -> Checkpoint:
    """Return a checkpoint of HFGI's published layout whose conditions have `width` channels.

    Its encoder gives codes of `rows` rows.
    """
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
