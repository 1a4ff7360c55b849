"""HyperStyle's hypernetwork: from a photograph and its render to changed convolutions of StyleGAN2.

Alaluf et al., "HyperStyle: StyleGAN Inversion with HyperNetworks for Real Image Editing" (arXiv
2111.15666). For each tuned convolution with the weight W, the network predicts factors S, and the
convolution becomes ``W (1 + S)``. The factors of several passes are added up.

The network is written as two parts. `CodePredictor` maps the two pictures to one code of each
layer. `FactorLayers` maps codes to factors and has no non-linearity, ``S(z) = A z + c``. So the sum
of the factors of T passes is ``A (z_1 + ... + z_T) + T c``, and the sum of the codes and T replace
it. Modules have the published names of their weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.networks.files import weight_files
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2

_Net = TypeVar("_Net", bound=nn.Module)
# Blocks in each stage of the body, which are those of ResNet-34.
UNITS = (3, 4, 6, 3)
PREFIX = "hypernet."
# The weights that map codes to factors. All others map the pictures to codes.
_FACTORS = re.compile(r"shared_weight_hypernet\.|refinement_blocks\.\d+\.output\.")
_LAYER = re.compile(r"refinement_blocks\.(\d+)\.")


class OtherGenerator(ValueError):
    """The factors do not fit the convolutions of the generator."""


def convolutions(generator: StyleGAN2) -> dict[int, str]:
    """Return the names of a generator's convolutions by HyperStyle's numbers of layers.

    The numbers count the first convolution and its image layer, and then of each block two
    convolutions and the image layer: convolutions are 0, 2, 3, 5, 6, ...
    """
    return {0: "conv1"} | {2 + k + k // 2: f"convs.{k}" for k in range(generator.convs)}


class _Block(nn.Module):
    """Basic block of ResNet; the side is divided by the stride."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = (
            nn.Sequential()
            if inp == out
            else nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class _Head(nn.Module):
    """Features [B, C, 16, 16] -> the code of one layer, [B, C]."""

    def __init__(self, channels: int, narrow: int, strides: Sequence[int], linear: bool) -> None:
        super().__init__()
        widths = [channels, *[narrow] * (len(strides) - 1), channels]
        convs = [
            nn.Conv2d(inp, out, 3, stride, 1)
            for (inp, out), stride in zip(pairwise(widths), strides, strict=True)
        ]
        self.convs = nn.Sequential(*(m for conv in convs for m in (conv, nn.LeakyReLU())))
        self.linear = nn.Linear(channels, channels) if linear else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x).mean((2, 3))
        if self.linear is None:
            return x
        return F.linear(x, self.linear.weight / math.sqrt(x.shape[1]), self.linear.bias)


class CodePredictor(nn.Module):
    """Map pairs of pictures to codes, [B, 6, 256, 256] -> [B, number of layers, 8 width].

    The channels of the input are the photograph and then its render, both in [-1, 1].

    Args:
        layers: The tuned layers in ascending order, and of each whether it is one of those that
            share their factor layers.
        width: Channels of the first stage, 64 as published.
        inputs: Channels of the input.
    """

    def __init__(self, layers: Mapping[int, bool], width: int = 64, inputs: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.PReLU(width)
        blocks, last = [], width
        for stage, count in enumerate(UNITS):
            for unit in range(count):
                out = width * 2**stage
                blocks.append(_Block(last, out, 1 if unit or not stage else 2))
                last = out
        self.body = nn.Sequential(*blocks)
        self.refinement_blocks = nn.ModuleDict(
            {
                str(layer): _Head(last, 2 * width, (1, 2, 2, 2, 2), linear=True)
                if shared
                else _Head(last, 4 * width, (2, 2, 2), linear=False)
                for layer, shared in layers.items()
            }
        )

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.body(self.relu(self.bn1(self.conv1(pictures))))
        return torch.stack([head(x) for head in self.refinement_blocks.values()], 1)


class _SharedFactors(nn.Module):
    """Factors of square convolutions, one per weight: [B, Z] -> [B, C, C, 3, 3]."""

    def __init__(self, code: int, channels: int) -> None:
        super().__init__()
        self.w2 = nn.Parameter(torch.zeros(code, channels * code))
        self.b2 = nn.Parameter(torch.zeros(channels * code))
        self.w1 = nn.Parameter(torch.zeros(code, channels * 9))
        self.b1 = nn.Parameter(torch.zeros(channels * 9))

    def forward(self, code: Tensor, passes: Tensor) -> Tensor:
        hidden = code @ self.w2 + passes * self.b2
        factors = hidden.unflatten(1, (-1, code.shape[1])) @ self.w1 + passes[:, None] * self.b1
        return factors.unflatten(2, (-1, 3, 3))


class _Factors(nn.Module):
    """Factors of a convolution, equal for all taps of its kernel: [B, Z] -> [B, out, in, 1, 1]."""

    def __init__(self, code: int, out: int, inp: int) -> None:
        super().__init__()
        # As published, where the first element averages the features.
        self.output = nn.Sequential(nn.Identity(), nn.Conv2d(code, out * inp, 1))
        self.shape = (out, inp, 1, 1)

    def forward(self, code: Tensor, passes: Tensor) -> Tensor:
        weight, bias = self.output.parameters()
        factors = code @ weight.flatten(1).T + passes * bias
        return factors.unflatten(1, self.shape)


class FactorLayers(nn.Module):
    """Map summed codes to the sum of factors of each tuned layer.

    Args:
        shapes: Output and input channels of the tuned layers, in ascending order of the layers.
        shared: Those that share their factor layers.
        channels: Output and input channels of these, 512 as published.
        code: Length of a code, 512 as published.
    """

    def __init__(
        self,
        shapes: Mapping[int, tuple[int, int]],
        shared: Collection[int],
        channels: int = 512,
        code: int = 512,
    ) -> None:
        super().__init__()
        self.layers = tuple(shapes)
        self.shared_weight_hypernet = _SharedFactors(code, channels)
        self.refinement_blocks = nn.ModuleDict(
            {str(k): _Factors(code, *shape) for k, shape in shapes.items() if k not in shared}
        )

    def forward(self, codes: Tensor, passes: Tensor) -> dict[int, Tensor]:
        """Return the factors S of each layer, [B, out, in, k, k] with k = 3 or 1.

        Args:
            codes: Sums of codes over passes, [B, number of layers, Z].
            passes: Number of passes of each image, [B, 1].
        """
        own = dict(self.refinement_blocks.items())
        return {
            layer: own.get(str(layer), self.shared_weight_hypernet)(codes[:, i], passes)
            for i, layer in enumerate(self.layers)
        }


def _weights(path: Path) -> dict[str, Tensor]:
    """Return the hypernetwork's weights of a published file, mapped from the disk.

    Each of the blocks that share their factor layers holds these once more under its own name. Such
    entries are compared with the shared ones and left out.
    """
    weights = weight_files.section(weight_files.read(path, mapped=True), PREFIX, path)
    for name in [name for name in weights if re.search(r"\.hypernet\.", name)]:
        copy, last = weights.pop(name), name.rpartition(".")[2]
        shared = weight_files.part(weights, f"shared_weight_hypernet.{last}", path)
        if copy.data_ptr() != shared.data_ptr() and not torch.equal(copy, shared):
            raise ValueError(f"{path}: {name} is not equal to shared_weight_hypernet.{last}")
    return weights


def _fill(net: _Net, weights: Mapping[str, Tensor], layers: Collection[int], path: Path) -> _Net:
    """Fill a part of the network with copies of its weights, without those of other layers."""
    factors, wanted = isinstance(net, FactorLayers), {}
    for name, value in weights.items():
        layer = _LAYER.match(name)
        if bool(_FACTORS.match(name)) == factors and (not layer or int(layer[1]) in layers):
            wanted[name] = value.clone()
    return weight_files.fill(net, wanted, path)


def _shared(weights: Mapping[str, Tensor], layers: Collection[int]) -> set[int]:
    """Return which layers share their factor layers."""
    return {k for k in layers if f"refinement_blocks.{k}.linear.weight" in weights}


def load_factors(path: Path, generator: StyleGAN2) -> FactorLayers:
    """Load the layers that map codes to factors, which rendering needs.

    Args:
        path: A published file, which holds `state_dict` with keys `hypernet.*` (others, such as
            `decoder.*`, are ignored). Layers that a smaller generator lacks are left out.
        generator: The generator whose convolutions are changed.

    Raises:
        ValueError: A key is missing, unknown or has another shape.
        OtherGenerator: The factors do not fit the convolutions of the generator.
    """
    weights, names = _weights(path), convolutions(generator)
    tuned = sorted({int(match[1]) for name in weights if (match := _LAYER.match(name))})
    if image_layers := [layer for layer in tuned if layer % 3 == 1]:
        raise ValueError(f"{path} changes image layers ({image_layers}), which is not supported")
    layers = [layer for layer in tuned if layer in names]
    shared = _shared(weights, layers)
    code, last = weight_files.part(weights, "shared_weight_hypernet.w1", path).shape
    shapes: dict[int, tuple[int, int]] = {}
    for layer in layers:
        out, inp = generator.weight(f"{names[layer]}.weight").shape[:2]
        if layer in shared:
            given, fits = f"{last // 9} x {last // 9}", out == inp == last // 9
        else:
            bias = weight_files.part(weights, f"refinement_blocks.{layer}.output.1.bias", path)
            given, fits = str(bias.numel()), bias.numel() == out * inp
        if not fits:
            raise OtherGenerator(
                f"{path} has {given} factors for layer {layer}, but {names[layer]} of this "
                f"generator has {out} x {inp} channels"
            )
        shapes[layer] = (out, inp)
    with torch.device("meta"):
        net = FactorLayers(shapes, shared, last // 9, code)
    return _fill(net, weights, layers, path)


def load_codes(path: Path, layers: Sequence[int]) -> CodePredictor:
    """Load the part of the network that maps pictures to the codes of some of its layers.

    Args:
        path: As in `load_factors`.
        layers: `FactorLayers.layers`.

    Raises:
        ValueError: A key is missing, unknown or has another shape.
    """
    weights = _weights(path)
    width, inputs = weight_files.part(weights, "conv1.weight", path).shape[:2]
    shared = _shared(weights, layers)
    with torch.device("meta"):
        net = CodePredictor({layer: layer in shared for layer in layers}, width, inputs)
    return _fill(net, weights, layers, path)
