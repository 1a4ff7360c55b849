"""MobileStyleGAN, a StyleGAN2 distilled to separable convolutions and wavelet upsampling.

Belousov, "MobileStyleGAN: A Lightweight Convolutional Neural Network for High-Fidelity Image
Synthesis" (arXiv 2104.04767). The published FFHQ weights share the W space of StyleGAN2-FFHQ.

Row 0 of a W+ code modulates the first convolution, row ``3i+1`` the upsampling and the first
convolution of block ``i``, row ``3i+2`` its second convolution, and row ``3*last+3`` the image
head. The other rows have no effect.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.generators.generator import (
    STYLE_WIDTH,
    Delta,
    Generator,
    Place,
    Taps,
)

FFHQ_CHANNELS = (512, 512, 512, 512, 512, 256, 128, 64)
# Rows of StyleGAN2-FFHQ and the rows here that correspond to them.
STYLEGAN2_ROWS = {0: 0, 15: 21} | {2 * i + k: 3 * i + k for i in range(7) for k in (1, 2)}


def inverse_haar(bands: Tensor) -> Tensor:
    """Invert a 2-D Haar transform, [B, 4C, H, W] -> [B, C, 2H, 2W].

    The first C channels are the low band, the other 3C the high bands, interleaved per channel.
    """
    b, c4, h, w = bands.shape
    c = c4 // 4
    low = bands[:, :c] * 0.5
    high = bands[:, c:].reshape(b, c, 3, h, w) * 0.5
    h0, h1, h2 = high.unbind(2)
    p, q, r, s = low + h0, low - h0, h1 + h2, h1 - h2
    return F.pixel_shuffle(torch.stack([p + r, p - r, q + s, q - s], 2).flatten(1, 2), 2)


class MobileStyleGAN(Generator):
    """MobileStyleGAN as a `Generator`. Noise is a constant of the published network.

    Args:
        channels: Widths at 4, 8, 16, ... px; one synthesis block for each entry after the first.
        head: ``haar`` maps the last block to 12 wavelet channels, for an image of twice its size;
            ``rgb`` maps it to 3 channels, for an image of its size.
        feature_block: Index of the block whose output is the feature layer.
        num_ws: Number of rows of a W+ code, at least ``3 * blocks + 1``.

    Raises:
        ValueError: `feature_block` or `num_ws` does not fit `channels`.
    """

    def __init__(
        self,
        channels: tuple[int, ...] = FFHQ_CHANNELS,
        head: Literal["haar", "rgb"] = "haar",
        feature_block: int = 4,
        num_ws: int = 23,
    ) -> None:
        super().__init__()
        self.channels, self.head = tuple(channels), head
        self.blocks = len(channels) - 1
        if not 0 <= feature_block < self.blocks:
            raise ValueError(f"feature_block must be 0..{self.blocks - 1}, got {feature_block}")
        self.feature_block, self.num_ws = feature_block, num_ws
        self.resolution = 4 * 2**self.blocks * (2 if head == "haar" else 1)
        self.head_slot = 3 * (self.blocks - 1) + 3
        if num_ws <= self.head_slot:
            raise ValueError(f"num_ws must exceed {self.head_slot}, got {num_ws}")

        self._add("input", channels[0], 4, 4)
        self._add_modulation("conv1", channels[0])
        self._add("conv1.weight", channels[0], channels[0], 3, 3)
        self._add("conv1.bias", channels[0])
        self._add_noise("conv1", 4)
        for i in range(self.blocks):
            size, narrow, out = 8 * 2**i, channels[i] // 4, channels[i + 1]
            self._add_modulation(f"layers.{i}.up", channels[i])
            for name, c_in in ((f"layers.{i}.conv1", narrow), (f"layers.{i}.conv2", out)):
                self._add_modulation(name, c_in)
                self._add(f"{name}.weight_dw", c_in, 1, 3, 3)
                self._add(f"{name}.weight", out, c_in)
                self._add(f"{name}.bias", out)
                self._add_noise(name, size)
        self._add_modulation("to_img", channels[-1])
        self._add("to_img.weight", 12 if head == "haar" else 3, channels[-1])
        self._add("to_img.bias", 12 if head == "haar" else 3)

    # ---------------------------------------------------------------------- forward

    def _conv(self, name: str, x: Tensor, style: Tensor, delta: Delta | None) -> Tensor:
        b, c, h, w = x.shape
        s = self._style(name, style, delta) / math.sqrt(9 * c)
        bias = self._get(f"{name}.bias", delta, b)
        offset = self.noise(name).reshape(1, 1, h * w) + bias.unsqueeze(2)
        weight = self._get(f"{name}.weight", delta, b)
        if name == "conv1":
            kernel = weight * s[:, None, :, None, None]
            y = F.conv2d(x.reshape(1, b * c, h, w), kernel.flatten(0, 1), padding=1, groups=b)
            y = y.reshape(b, -1, h * w) + offset
        else:
            # Scaling the depthwise kernel instead of x saves one pass over x in each direction.
            kernel = self._get(f"{name}.weight_dw", delta, b) * s[:, :, None, None, None]
            x = F.conv2d(x.reshape(1, b * c, h, w), kernel.flatten(0, 1), padding=1, groups=b * c)
            y = torch.baddbmm(
                offset.expand(b, -1, -1), weight.expand(b, -1, -1), x.reshape(b, c, h * w)
            )
        return F.leaky_relu_(y, 0.2).reshape(b, -1, h, w)

    def _run_blocks(
        self,
        x: Tensor,
        ws: Tensor,
        first: int,
        last: int,
        delta: Delta | None,
        taps: Taps | None = None,
    ) -> Tensor:
        for i in range(first, last):
            up_style = self._style(f"layers.{i}.up", ws[:, 3 * i + 1], delta)
            x = inverse_haar(x * up_style[:, :, None, None])
            x = self._conv(f"layers.{i}.conv1", x, ws[:, 3 * i + 1], delta)
            x = self._tapped(x, (8 * 2**i, "up"), taps)
            x = self._conv(f"layers.{i}.conv2", x, ws[:, 3 * i + 2], delta)
            x = self._tapped(x, (8 * 2**i, "out"), taps)
        return x

    @property
    def feature_place(self) -> Place:
        return 8 * 2**self.feature_block, "out"

    def trunk(
        self, ws: Tensor, delta: Delta | None = None, taps: Taps | None = None
    ) -> tuple[Tensor, None]:
        self._check(ws)
        x = self._get("input", delta, len(ws)).expand(len(ws), -1, -1, -1)
        x = self._tapped(self._conv("conv1", x, ws[:, 0], delta), (4, "out"), taps)
        return self._run_blocks(x, ws, 0, self.feature_block + 1, delta, taps), None

    def from_feature(
        self,
        x: Tensor,
        ws: Tensor,
        delta: Delta | None = None,
        skip: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        x = self._run_blocks(x, ws, self.feature_block + 1, self.blocks, delta, taps)
        b, c, h, w = x.shape
        s = self._style("to_img", ws[:, self.head_slot], delta) / math.sqrt(c)
        weight = self._get("to_img.weight", delta, b) * s[:, None, :]
        bias = self._get("to_img.bias", delta, b).unsqueeze(2)
        y = torch.baddbmm(bias.expand(b, -1, h * w), weight, x.reshape(b, c, h * w))
        y = y.reshape(b, -1, h, w)
        return inverse_haar(y) if self.head == "haar" else y

    # ---------------------------------------------------------------------- latents

    def modulated(self, row: int) -> list[str]:
        if row == 0:
            return ["conv1"]
        if row == self.head_slot:
            return ["to_img"]
        block, part = divmod(row - 1, 3)
        parts = {0: ("up", "conv1"), 1: ("conv2",), 2: ()}[part] if block < self.blocks else ()
        return [f"layers.{block}.{p}" for p in parts]

    def in_trunk(self, layer: str) -> bool:
        name, _, rest = layer.partition(".")
        return layer == "conv1" or (
            name == "layers" and int(rest.partition(".")[0]) <= self.feature_block
        )

    def expand_direction(self, direction: Tensor) -> Tensor:
        """See `Generator.expand_direction`. Takes the 18 rows of StyleGAN2 as well."""
        if direction.shape == (STYLE_WIDTH,):
            return direction.expand(self.num_ws, -1)
        if direction.shape == (self.num_ws, STYLE_WIDTH):
            return direction
        if direction.shape == (18, STYLE_WIDTH):
            rows = torch.zeros(self.num_ws, STYLE_WIDTH)
            for source, target in STYLEGAN2_ROWS.items():
                if target < self.num_ws:
                    rows[target] = direction[source]
            # The head of a cut network replaces the layers above it.
            rows[self.head_slot] = direction[min(15, 2 * self.blocks + 1)]
            return rows
        raise ValueError(
            f"direction of shape {list(direction.shape)} does not fit this generator: expected "
            f"[512], [{self.num_ws}, 512] or [18, 512]"
        )
