"""Encoders of the pSp family, which map a face photograph to a W+ code in one forward pass.

pSp: Richardson et al., "Encoding in Style" (arXiv 2008.00951). e4e: Tov et al., "Designing an
Encoder for StyleGAN Image Manipulation" (arXiv 2102.02766). ReStyle: Alaluf et al. (arXiv
2104.02699). All have an IR-SE50 body (Deng et al., ArcFace, with squeeze-and-excitation) and one
`map2style` head per row of the code, or in `WEncoder` one layer for a code in W. Modules have the
published names of their weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.networks.files import checkpoints, weight_files

SIZE = 256
PREFIX = "encoder."
STYLE_WIDTH = 512
# Blocks in each stage of the body, and the blocks whose outputs the heads use: 64, 32 and 16 px
# for an input of 256 px.
UNITS = (3, 4, 14, 3)
TAPS = (6, 20, 23)
# Rows below the first number use the 16 px features, rows below the second the 32 px ones.
COARSE, MIDDLE = 3, 7


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // 16)
        self.fc1 = nn.Conv2d(channels, narrow, 1, bias=False)
        self.fc2 = nn.Conv2d(narrow, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Bottleneck(nn.Module):
    """IR-SE block, or IR without `excitation`; the side is divided by the stride."""

    def __init__(self, inp: int, out: int, stride: int, excitation: bool = True) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = (
            nn.MaxPool2d(1, stride)
            if inp == out
            else nn.Sequential(nn.Conv2d(inp, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inp),
            nn.Conv2d(inp, out, 3, 1, 1, bias=False),
            nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            *([_SqueezeExcitation(out)] if excitation else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


def input_layer(inputs: int, width: int) -> nn.Sequential:
    """Return the layer before the body, [B, inputs, H, W] -> [B, width, H, W]."""
    conv = nn.Conv2d(inputs, width, 3, 1, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.PReLU(width))


def body(units: Sequence[int], width: int, excitation: bool = True) -> nn.Sequential:
    """Return four stages of blocks, [B, width, H, W] -> [B, 8 * width, H / 16, W / 16]."""
    blocks: list[nn.Module] = []
    last = width
    for stage, count in enumerate(units):
        for unit in range(count):
            out = width * 2**stage
            blocks.append(Bottleneck(last, out, 1 if unit else 2, excitation))
            last = out
    return nn.Sequential(*blocks)


class _Head(nn.Module):
    """`map2style`: features [B, C, size, size] -> one row [B, 512]."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        halvings = [nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(int(math.log2(size)))]
        self.convs = nn.Sequential(*(m for conv in halvings for m in (conv, nn.LeakyReLU())))
        self.linear = nn.Linear(channels, STYLE_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x).flatten(1)
        return F.linear(x, self.linear.weight / math.sqrt(x.shape[1]), self.linear.bias)


class Encoder(nn.Module):
    """Map images [B, inputs, 256, 256] in [-1, 1] to rows [B, heads, 512] relative to a mean code.

    Args:
        shared: Add row 0 to every other row (e4e); otherwise rows are independent (pSp).
        pyramid: Fine rows use the 64 and 32 px features; otherwise all rows use the 16 px ones
            (ReStyle).
        heads: Number of rows.
        inputs: Channels of the input; 6 for ReStyle, which sees two images.
        width: Channels of the first stage, 64 as published.
    """

    def __init__(
        self,
        *,
        shared: bool,
        pyramid: bool = True,
        heads: int = 18,
        inputs: int = 3,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.shared, self.pyramid, self.heads = shared, pyramid, heads
        self.input_layer = input_layer(inputs, width)
        self.body = body(UNITS, width)
        last = 8 * width
        sizes = [
            16 if i < COARSE or not pyramid else 32 if i < MIDDLE else 64 for i in range(heads)
        ]
        self.styles = nn.ModuleList(_Head(last, size) for size in sizes)
        if pyramid:
            self.latlayer1 = nn.Conv2d(last // 2, last, 1)
            self.latlayer2 = nn.Conv2d(last // 4, last, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine, middle, coarse = tapped(self.body, self.input_layer(images))
        features = [coarse, coarse, coarse]
        if self.pyramid:
            features[1] = enlarged(coarse, middle) + self.latlayer1(middle)
            features[2] = enlarged(features[1], fine) + self.latlayer2(fine)
        rows = [head(features[(i >= COARSE) + (i >= MIDDLE)]) for i, head in enumerate(self.styles)]
        if self.shared:
            rows[1:] = [rows[0] + row for row in rows[1:]]
        return torch.stack(rows, 1)


class WEncoder(nn.Module):
    """Map images [B, 3, 256, 256] in [-1, 1] to latents [B, 512] relative to a mean latent.

    This is the encoder of HyperStyle (Alaluf et al., arXiv 2111.15666).

    Args:
        width: Channels of the first stage, 64 as published.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.input_layer = input_layer(3, width)
        self.body = body(UNITS, width)
        self.linear = nn.Linear(8 * width, STYLE_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        x = self.body(self.input_layer(images)).mean((2, 3))
        return F.linear(x, self.linear.weight / math.sqrt(x.shape[1]), self.linear.bias)


def tapped(body: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Return the outputs of the blocks `TAPS` of a body for its input [B, width, H, W]."""
    found: list[Tensor] = []
    for i, block in enumerate(body):
        x = block(x)
        if i in TAPS:
            found.append(x)
    return found


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Resize [B, C, h, w] bilinearly to the size of `like`."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def load(path: Path, *, shared: bool) -> tuple[Encoder, Tensor]:
    """Load an encoder and the mean code [heads, 512] that its rows are relative to.

    Args:
        path: A published file, which holds `state_dict` with keys `encoder.*` (others are ignored),
            `latent_avg` and usually `opts`.
        shared: See `Encoder`.

    Raises:
        ValueError: A key is missing or has another shape.
    """
    checkpoint = weight_files.read(path)
    weights = weight_files.section(checkpoint, PREFIX, path)
    first = weight_files.part(weights, "input_layer.0.weight", path)
    heads = {m[1] for k in weights if (m := re.match(r"styles\.(\d+)\.", k))}
    with torch.device("meta"):
        net = Encoder(
            shared=shared,
            pyramid="latlayer1.weight" in weights,
            heads=len(heads),
            inputs=first.shape[1],
            width=first.shape[0],
        )
    weight_files.fill(net, weights, path)
    # The code of ReStyle adds the mean itself, independently of the options in its files.
    return net, mean_code(checkpoint, net.heads, path, always=not net.pyramid)


def mean_code(
    checkpoint: Mapping[str, Any], rows: int, path: Path, *, always: bool = False
) -> Tensor:
    """Return the mean code [rows, 512] that the rows of an encoder are relative to.

    It is zero if the options in the file say that training did not start from it.

    Args:
        checkpoint: The content of a published file.
        rows: Number of rows of the encoder.
        path: The file, for messages.
        always: Do not look at the options.

    Raises:
        ValueError: There is no `latent_avg`, or its shape does not fit.
    """
    options = checkpoints.fields(checkpoint.get("opts"))
    if not always and not options.get("start_from_latent_avg", True):
        return torch.zeros(rows, STYLE_WIDTH)
    mean = weight_files.part(checkpoint, "latent_avg", path).float()
    if mean.shape not in {(STYLE_WIDTH,), (1, STYLE_WIDTH), (rows, STYLE_WIDTH)}:
        raise ValueError(
            f"{path}: latent_avg has shape {list(mean.shape)}, not [{rows}, {STYLE_WIDTH}]"
        )
    return mean.expand(rows, STYLE_WIDTH).contiguous()


def load_w(path: Path) -> WEncoder:
    """Load the W encoder of a published file, which holds `state_dict` with keys `encoder.*`.

    Its `latent_avg` is not read (`latent_average`).

    Raises:
        ValueError: A key is missing, unknown or has another shape.
    """
    weights = weight_files.section(weight_files.read(path), PREFIX, path)
    first = weight_files.part(weights, "input_layer.0.weight", path)
    with torch.device("meta"):
        net = WEncoder(first.shape[0])
    return weight_files.fill(net, weights, path)


def latent_average(path: Path) -> Tensor:
    """Return the mean latent [512] in the `latent_avg` of a published file.

    Raises:
        ValueError: There is none, or it is not a code in W: its shape is neither [512] nor
            [n, 512] with equal rows.
    """
    mean = weight_files.part(weight_files.read(path, mapped=True), "latent_avg", path)
    in_w = mean.ndim in (1, 2) and mean.shape[-1] == STYLE_WIDTH
    if not in_w or (mean != mean.reshape(-1, STYLE_WIDTH)[0]).any():
        raise ValueError(
            f"{path}: latent_avg of shape {list(mean.shape)} is no mean latent in W, which is "
            f"[{STYLE_WIDTH}] or equal rows of this length"
        )
    return mean.reshape(-1, STYLE_WIDTH)[0].float().clone()
