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
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.networks import weight_files

# Blocks in each stage of the body, which are those of ResNet-34.
UNITS = (3, 4, 6, 3)
PREFIX = "hypernet."
# The weights that map codes to factors. All others map the pictures to codes.
_FACTORS = re.compile(r"shared_weight_hypernet\.|refinement_blocks\.\d+\.output\.")
_LAYER = re.compile(r"refinement_blocks\.(\d+)\.")


def convolution(layer: int) -> str:
    """Return the name in `StyleGAN2` of a layer in HyperStyle's numbering.

    The layers are the first convolution and its image layer, then two convolutions and the image
    layer of each block.

    Raises:
        ValueError: The layer is an image layer, which HyperStyle does not tune.

    Example:
        >>> convolution(0), convolution(5), convolution(24)
        ('conv1', 'convs.2', 'convs.15')
    """
    block, place = divmod(layer - 2, 3)
    if layer and place == 2:
        raise ValueError(f"layer {layer} is an image layer, which HyperStyle does not tune")
    return f"convs.{2 * block + place}" if layer else "conv1"


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

    def __init__(self, channels: int, narrow: int, strides: Collection[int], linear: bool) -> None:
        super().__init__()
        widths = [channels, *[narrow] * (len(strides) - 1), channels]
        convs = [
            nn.Conv2d(inp, out, 3, stride, 1)
            for inp, out, stride in zip(widths, widths[1:], strides, strict=False)
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
        self.output = nn.Sequential(nn.Identity(), nn.Conv2d(code, out * inp, 1))
        self.shape = (out, inp, 1, 1)

    def forward(self, code: Tensor, passes: Tensor) -> Tensor:
        conv = self.output[1]
        factors = code @ conv.weight.flatten(1).T + passes * conv.bias
        return factors.unflatten(1, self.shape)


class FactorLayers(nn.Module):
    """Map summed codes to the sum of factors of each tuned layer.

    Args:
        shapes: Output and input channels of the tuned layers, in ascending order of the layers.
        shared: Those that share their factor layers. Their shapes are equal and square.
        code: Length of a code, 512 as published.
    """

    def __init__(
        self, shapes: Mapping[int, tuple[int, int]], shared: Collection[int], code: int = 512
    ) -> None:
        super().__init__()
        self.layers = tuple(shapes)
        if shared:
            self.shared_weight_hypernet = _SharedFactors(code, shapes[min(shared)][0])
        self.refinement_blocks = nn.ModuleDict(
            {str(k): _Factors(code, *shape) for k, shape in shapes.items() if k not in shared}
        )

    def forward(self, codes: Tensor, passes: Tensor) -> dict[int, Tensor]:
        """Return the factors S of each layer, [B, out, in, k, k] with k = 3 or 1.

        Args:
            codes: Sums of codes over passes, [B, number of layers, Z].
            passes: Number of passes of each image, [B, 1].
        """
        factors = {}
        for i, layer in enumerate(self.layers):
            own = str(layer) in self.refinement_blocks
            net = self.refinement_blocks[str(layer)] if own else self.shared_weight_hypernet
            factors[layer] = net(codes[:, i], passes)
        return factors
