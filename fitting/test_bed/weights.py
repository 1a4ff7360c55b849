"""Weights of the StyleGAN2 test bed: how they start, and how they are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dhr_batch.fitting.test_bed.student import Coordinates
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.generators.stylegan2_layouts import MAPPING_RATE

# Brings the features to a root mean square of .3 to 1.1; see `fill`.
FEATURE_SCALE = 0.4


def is_head(name: str) -> bool:
    """Return whether a weight is the kernel of an image layer."""
    return name.startswith("to_rgb") and name.endswith("weight") and "modulation" not in name


def in_features(name: str) -> bool:
    """Return whether the features are proportional to these weights taken together."""
    bias = name.endswith("bias") and "modulation" not in name and "to_rgb" not in name
    return name == "input" or name.endswith("noise_strength") or bias


def start(net: StyleGAN2, space: Coordinates) -> dict[str, Tensor]:
    """Return random weights of the synthesis network, with modulations of coordinates of W.

    Kernels have unit variance and styles a mean of 1, as StyleGAN2 starts. Image layers are 0,
    so that sizes that are not yet trained add nothing.
    """
    draw = torch.Generator().manual_seed(0)
    params = {}
    for name in net.weight_names():
        shape = net.weight(name).shape
        if name.startswith("mapping."):
            continue
        if name.endswith("modulation.bias"):
            params[name] = torch.ones(shape)
        elif name.endswith("noise_strength"):
            params[name] = torch.full(shape, 0.02)
        elif name.endswith("bias") or is_head(name):
            params[name] = torch.zeros(shape)
        else:
            params[name] = torch.randn(shape, generator=draw)
    for name in net.noise_names:
        net.noise(name).copy_(torch.randn(net.noise(name).shape, generator=draw))
    for name in [name for name in params if name.endswith("modulation.weight")]:
        params[name], _ = space.from_weights(params[name], torch.zeros(()))
    return params


@torch.no_grad()
def fill(net: StyleGAN2, params: Mapping[str, Tensor], space: Coordinates) -> StyleGAN2:
    """Copy weights in training to the network, rounded to half precision as they are stored.

    Features are proportional to some weights, and images to features and heads. So that features
    are of the size of published networks, these weights are multiplied and heads are divided.
    """
    for name, value in params.items():
        if name.endswith("modulation.weight"):
            bias = name.replace("weight", "bias")
            pair = space.to_weights(value, params[bias])
            for key, part in zip((name, bias), pair, strict=True):
                net.weight(key).copy_(part.half())
        elif not name.endswith("modulation.bias"):
            factor = FEATURE_SCALE if in_features(name) else 1 / FEATURE_SCALE
            scaled = value * factor if in_features(name) or is_head(name) else value
            net.weight(name).copy_(scaled.half())
    return net


def rosinality(net: StyleGAN2) -> dict[str, object]:
    """Return the checkpoint of a network in the layout of rosinality/stylegan2-pytorch."""
    state: dict[str, Tensor] = {}
    for name in net.weight_names():
        value, (layer, _, leaf) = net.weight(name).detach().clone(), name.rpartition(".")
        if name.startswith("mapping."):
            scale = MAPPING_RATE / (math.sqrt(value.shape[1]) if leaf == "weight" else 1)
            state[f"style.{int(layer.split('.')[1]) + 1}.{leaf}"] = value / scale
        elif name == "input":
            state["input.input"] = value[None]
        elif ".modulation." in name:
            state[name.replace(".modulation.", ".conv.modulation.")] = value
        elif leaf == "weight":
            state[f"{layer}.conv.weight"] = value.reshape(1, *value.shape[:2], *_kernel(value))
        elif leaf == "noise_strength":
            state[f"{layer}.noise.weight"] = value
        elif layer.startswith("to_rgb"):
            state[name] = value.reshape(1, 3, 1, 1)
        else:
            state[f"{layer}.activate.bias"] = value
    for index, name in enumerate(net.noise_names):
        state[f"noises.noise_{index}"] = net.noise(name)[None, None].clone()
    for block in range(net.convs // 2):
        state[f"convs.{2 * block}.conv.blur.kernel"] = net.filter.clone()
        state[f"to_rgbs.{block}.upsample.kernel"] = net.filter.clone()
    return {"g_ema": state, "latent_avg": net.w_mean.clone()}


def _kernel(value: Tensor) -> tuple[int, int]:
    return (3, 3) if value.ndim == 4 else (1, 1)


def rms(tensor: Tensor) -> float:
    """Return the root mean square of a tensor."""
    return float(tensor.detach().float().square().mean().sqrt())
