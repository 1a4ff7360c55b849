"""HFGI's networks, which turn what an inversion has lost into conditions of the generator.

Wang et al., "High-Fidelity GAN Inversion for Image Attribute Editing" (CVPR 2022, arXiv
2109.06590). Modules have the published names of their weights.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.networks.encoders.psp import Bottleneck, input_layer
from dhr_batch.stages.networks.files import weight_files

SIZE = 256
# Side of the features that the conditions change.
CONDITIONED = 64
ALIGNER, CONSULTATION = "grid_align.", "residue."


def _stage(*widths: int, stride: int = 1) -> nn.Sequential:
    """Return blocks between consecutive widths, of which the first has the stride."""
    pairs = enumerate(pairwise(widths))
    return nn.Sequential(*(Bottleneck(i, o, 1 if k else stride, False) for k, (i, o) in pairs))


def _enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Aligner(nn.Module):
    """ADA: move a residual to where the content lies in another render of the same face.

    Maps residual and render [B, 6, H, W] to the aligned residual [B, 3, H, W]; H and W are
    multiples of 8. The result is not clamped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_layer1 = input_layer(6, 16)
        self.conv_layer2 = _stage(16, 32, 32, 32, stride=2)
        self.conv_layer3 = _stage(32, 48, 48, 48, stride=2)
        self.conv_layer4 = _stage(48, 64, 64, 64, stride=2)
        self.dconv_layer1 = _stage(112, 64, 32, 32)
        self.dconv_layer2 = _stage(64, 32, 16, 16)
        self.dconv_layer3 = _stage(32, 16, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        full = self.conv_layer1(x)
        half = self.conv_layer2(full)
        quarter = self.conv_layer3(half)
        x = self.conv_layer4(quarter)
        x = self.dconv_layer1(torch.cat([_enlarged(x), quarter], 1))
        x = self.dconv_layer2(torch.cat([_enlarged(x), half], 1))
        return self.dconv_layer3(torch.cat([_enlarged(x), full], 1))


class _EqualConv(nn.Conv2d):
    """3x3 convolution whose weight is stored at unit variance."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__(inp, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / math.sqrt(9 * x.shape[1]), self.bias, padding=1)


class _ScaledLeakyReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2) * math.sqrt(2)


class Consultation(nn.Module):
    """Map an aligned residual [B, 3, 256, 256] to a scale and a shift, each [B, width, 64, 64].

    Args:
        width: Channels of the features, 512 as published.
    """

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.width = width
        self.conv_layer1 = input_layer(3, 32)
        self.conv_layer2 = _stage(32, 48, 48, 48, stride=2)
        self.conv_layer3 = _stage(48, 64, 64, 64, stride=2)
        self.condition_scale3 = self._condition()
        self.condition_shift3 = self._condition()

    def _condition(self) -> nn.Sequential:
        width = self.width
        return nn.Sequential(_EqualConv(64, width), _ScaledLeakyReLU(), _EqualConv(width, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv_layer3(self.conv_layer2(self.conv_layer1(x)))
        return self.condition_scale3(x), self.condition_shift3(x)


def resized(images: Tensor) -> Tensor:
    """Resize images to [B, 3, 256, 256] as HFGI does: bilinearly, without a low-pass filter."""
    if images.shape[2:] == (SIZE, SIZE):
        return images
    return F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False)


def load(path: Path) -> tuple[Aligner, Consultation]:
    """Load both networks from the published file.

    Args:
        path: A file with `state_dict`, whose keys start with `grid_align.` and `residue.`. Its
            other parts, an e4e encoder and a generator, are not read.

    Raises:
        ValueError: A part or a key is missing, unknown or has another shape.
    """
    # The encoder and the generator are a gigabyte, of which nothing is needed.
    checkpoint = weight_files.read(path, mapped=True)
    parts = [weight_files.section(checkpoint, prefix, path) for prefix in (ALIGNER, CONSULTATION)]
    width = len(weight_files.part(parts[1], "condition_scale3.0.bias", path))
    with torch.device("meta"):
        nets = Aligner(), Consultation(width)
    for net, weights in zip(nets, parts, strict=True):
        weight_files.fill(net, {key: value.clone() for key, value in weights.items()}, path)
    return nets
