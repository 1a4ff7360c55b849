"""BiSeNet face parsing: the 19 classes of CelebAMask-HQ from a trained network.

Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation" (arXiv
1808.00897). As in face-parsing.PyTorch, the context path is a ResNet-18 whose 64 px features also
serve as spatial path. Modules have the published names of their weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from dhr_batch.stages.networks.files import weight_files
from dhr_batch.stages.networks.parsers.picture_parser import PictureParser

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context

# Order of the published network, in the names of this project; left and right as in its data.
ORDER = (
    "background",
    "face",
    "left_brow",
    "right_brow",
    "left_eye",
    "right_eye",
    "glasses",
    "left_ear",
    "right_ear",
    "earring",
    "nose",
    "inner_mouth",
    "upper_lip",
    "lower_lip",
    "neck",
    "necklace",
    "cloth",
    "hair",
    "hat",
)


class _Conv(nn.Module):
    """Convolution, batch normalisation and ReLU, without a change of size."""

    def __init__(self, inp: int, out: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _AttentionRefinement(nn.Module):
    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.conv = _Conv(inp, out)
        self.conv_atten = nn.Conv2d(out, out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(gate)


class _ContextPath(nn.Module):
    """Map images [B, 3, H, W] to ResNet features and context, [B, 128, H/8, W/8] each."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = resnet18(weights=None)
        del self.resnet.fc
        self.arm16 = _AttentionRefinement(256, 128)
        self.arm32 = _AttentionRefinement(512, 128)
        self.conv_head32 = _Conv(128, 128)
        self.conv_head16 = _Conv(128, 128)
        self.conv_avg = _Conv(512, 128, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        net = self.resnet
        x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
        at8 = net.layer2(x)
        at16 = net.layer3(at8)
        at32 = net.layer4(at16)
        context = self.arm32(at32) + self.conv_avg(at32.mean((2, 3), keepdim=True))
        context = self.conv_head32(F.interpolate(context, size=at16.shape[2:]))
        context = self.arm16(at16) + context
        return at8, self.conv_head16(F.interpolate(context, size=at8.shape[2:]))


class _FeatureFusion(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convblk = _Conv(channels, channels, 1)
        self.conv1 = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat([spatial, context], 1))
        gate = self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate) + x


class _Output(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _Conv(channels, channels)
        self.conv_out = nn.Conv2d(channels, len(ORDER), 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """Map normalised images [B, 3, H, W] to logits [B, 19, H, W] in `ORDER`.

    The sides must be multiples of 32. The two auxiliary outputs, used for training, are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cp = _ContextPath()
        self.ffm = _FeatureFusion(256)
        self.conv_out = _Output(256)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.conv_out(self.ffm(*self.cp(images)))
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=True)


class BiSeNetParser(PictureParser):
    """The parser `bisenet`."""

    name = "bisenet"
    order = ORDER


def load(path: Path) -> BiSeNet:
    """Load the network from a published file, a flat state dict.

    Raises:
        ValueError: Weights are missing, unknown or of another shape.
    """
    auxiliary = ("conv_out16.", "conv_out32.")
    weights = {k: v for k, v in weight_files.read(path).items() if not k.startswith(auxiliary)}
    with torch.device("meta"):
        net = BiSeNet()
    return weight_files.fill(net, weights, path)


def bisenet(context: Context) -> BiSeNetParser:
    """Load the parser `bisenet` from the model `bisenet-19`."""
    return BiSeNetParser(load(context.models("bisenet-19")).to(context.device))
