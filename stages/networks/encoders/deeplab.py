"""The predictor of invertibility of SAM: DeepLabv3+ with a small head for each latent space.

Parmar et al., "Spatially-Adaptive Multilayer Selection for GAN Inversion and Editing" (CVPR 2022).
Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation"
(arXiv 1802.02611), in the form of pytorch-deeplab-xception with a ResNet-101. Each head predicts
the LPIPS error map that an inversion in its space alone leaves. Modules have the published names
of their weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet, resnet101
from torchvision.models.resnet import Bottleneck

from dhr_batch.stages.networks.files import weight_files

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context

# Latent spaces in the order of the published file.
LEVELS = ("W+", "F4", "F6", "F8", "F10")
CLASSES = 8
# Dilations of the three blocks of the last stage, which keeps its size, and of the pyramid.
LAST_STAGE = (2, 4, 8)
PYRAMID = (1, 6, 12, 18)


def _convolution(inp: int, out: int, kernel: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inp, out, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


def _backbone() -> ResNet:
    """Return a ResNet-101 of stride 16, whose `fc` is left out."""
    net = resnet101(weights=None, replace_stride_with_dilation=[False, False, True])
    del net.fc
    for block, dilation in zip(net.layer4, LAST_STAGE, strict=True):
        assert isinstance(block, Bottleneck)
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)
    return net


class _Atrous(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        kernel, padding = (1, 0) if dilation == 1 else (3, dilation)
        self.atrous_conv = nn.Conv2d(
            2048, 256, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(256)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.atrous_conv(x)))


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling, [B, 2048, h, w] -> [B, 256, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.aspp1, self.aspp2, self.aspp3, self.aspp4 = (_Atrous(d) for d in PYRAMID)
        self.global_avg_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_convolution(2048, 256))
        self.conv1, self.bn1, _ = _convolution(5 * 256, 256)

    def forward(self, x: Tensor) -> Tensor:
        branches = [net(x) for net in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        branches.append(_resized(self.global_avg_pool(x), x))
        return F.relu(self.bn1(self.conv1(torch.cat(branches, 1))))


class _Decoder(nn.Module):
    """Join the pyramid with the features of the first stage, -> [B, 8, H / 4, W / 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, _ = _convolution(256, 48)
        # The published dropouts, which do nothing in inference, count in the numbers of the layers.
        self.last_conv = nn.Sequential(
            *_convolution(304, 256, 3),
            nn.Identity(),
            *_convolution(256, 256, 3),
            nn.Identity(),
            nn.Conv2d(256, CLASSES, 1),
        )

    def forward(self, x: Tensor, early: Tensor) -> Tensor:
        early = F.relu(self.bn1(self.conv1(early)))
        return self.last_conv(torch.cat([_resized(x, early), early], 1))


class DeepLab(nn.Module):
    """Map images [B, 3, H, W] in [-1, 1] to features [B, 8, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.aspp, self.decoder = _backbone(), _Pyramid(), _Decoder()

    def forward(self, images: Tensor) -> Tensor:
        net = self.backbone
        early = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
        deep = self.aspp(net.layer4(net.layer3(net.layer2(early))))
        return _resized(self.decoder(deep, early), images)


class Head(nn.Module):
    """Map the features [B, 8, H, W] to the error map of one latent space, [B, 1, H, W] >= 0."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Sequential(
            nn.ConvTranspose2d(CLASSES, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(4, 1, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.m(x)


class Invertibility(nn.Module):
    """Predict the LPIPS error map of an inversion in each of the latent spaces `LEVELS`."""

    def __init__(self, base: DeepLab, heads: dict[str, Head]) -> None:
        super().__init__()
        self.base, self.heads = base, nn.ModuleDict(heads)

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the error maps [B, 1, H, W] of images [B, 3, H, W] in [-1, 1] by level."""
        x = self.base(images)
        return {level: head(x) for level, head in self.heads.items()}


def load(path: Path) -> Invertibility:
    """Load the predictor from a published file, a dictionary of the state dicts of its parts.

    Raises:
        ValueError: A part or a weight is missing, unknown or of another shape.
    """
    checkpoint = weight_files.read(path)
    with torch.device("meta"):
        base, heads = DeepLab(), {level: Head() for level in LEVELS}

    def filled(net: nn.Module, key: str) -> nn.Module:
        weights = weight_files.part(checkpoint, key, path)
        return weight_files.fill(
            net, {name.removeprefix("module."): value for name, value in weights.items()}, path
        )

    filled(base, "sd_base")
    for level, head in heads.items():
        filled(head, level)
    return Invertibility(base, heads).eval()


def invertibility(context: Context) -> Invertibility:
    """Load the predictor from the model `sam-invertibility`."""
    return load(context.models("sam-invertibility")).to(context.device)
