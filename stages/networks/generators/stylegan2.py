"""StyleGAN2, configuration F with skip connections, in plain torch: no compiled extension.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958).

Row ``k`` of a W+ code modulates convolution ``k`` (``conv1``, then ``convs.0`` ...). The image
layer of each resolution uses the row of the convolution that follows it. A network for 1024 px has
18 rows, all of which affect the image.

Weights are stored as published, at unit variance: the scale ``1 / sqrt(fan-in)`` is applied in the
forward pass, so published learning rates are valid. The mapping network, which is never refined, is
stored with its scale applied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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

RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
# Low-pass filter of all resampling. Its outer product sums to 4, for a factor of 2 per axis.
TAPS = (0.25, 0.75, 0.75, 0.25)
# The published feature layer of DHR, the input of the 256 px block at 128 px.
FEATURE_LAYER = 11


def config_f(resolution: int) -> tuple[int, ...]:
    """Return the published widths at 4, 8, ... `resolution` px.

    Raises:
        ValueError: The resolution is not supported.

    Example:
        >>> config_f(256)
        (512, 512, 512, 512, 512, 256, 128)
    """
    if resolution not in RESOLUTIONS:
        supported = ", ".join(map(str, RESOLUTIONS))
        raise ValueError(f"StyleGAN2 at {resolution} px is not supported; choose from: {supported}")
    return tuple(min(512, 32768 // 2**i) for i in range(2, int(math.log2(resolution)) + 1))


class StyleGAN2(Generator):
    """StyleGAN2 as a `Generator`.

    Image layers up to the feature layer use the features before any replacement.

    Args:
        channels: Widths at 4, 8, 16, ... px.
        feature_layer: Index, from 1, of the convolution after ``conv1`` whose input is the feature
            layer. Odd numbers are the first convolution of a block, even ones the second. The
            default is the published 11 (128 px), or for small networks two blocks before the end.
        mapping_layers: Depth of the mapping network.

    Raises:
        ValueError: There is no such feature layer.
    """

    code_norm = math.sqrt(STYLE_WIDTH)
    # Names of tensors that its file lacked and that were made.
    made: tuple[str, ...] = ()

    def __init__(
        self,
        channels: Sequence[int],
        feature_layer: int | None = None,
        mapping_layers: int = 8,
    ) -> None:
        super().__init__(mapping_layers)
        self.channels = tuple(channels)
        self.convs = 2 * (len(channels) - 1)
        self.num_ws = self.convs + 2
        self.resolution = 4 * 2 ** (len(channels) - 1)
        default = min(FEATURE_LAYER, self.convs - 3)
        self.feature_layer = default if feature_layer is None else feature_layer
        if not 1 <= self.feature_layer <= self.convs:
            raise ValueError(f"feature_layer must be 1..{self.convs}, got {feature_layer}")

        self._add("input", channels[0], 4, 4)
        self._add_conv("conv1", channels[0], channels[0], 4)
        self._add_rgb("to_rgb1", channels[0])
        for k in range(self.convs):
            block = k // 2
            wide, narrow = channels[block], channels[block + 1]
            self._add_conv(f"convs.{k}", narrow if k % 2 else wide, narrow, 8 * 2**block)
            if k % 2:
                self._add_rgb(f"to_rgbs.{block}", narrow)
        taps = torch.tensor(TAPS)
        self.register_buffer("filter", taps[:, None] * taps, persistent=False)
        self.filter: Tensor

    def _add_conv(self, name: str, c_in: int, c_out: int, size: int) -> None:
        self._add_modulation(name, c_in)
        self._add(f"{name}.weight", c_out, c_in, 3, 3)
        self._add(f"{name}.noise_strength", 1)
        self._add(f"{name}.bias", c_out)
        self._add_noise(name, size)

    def _add_rgb(self, name: str, c_in: int) -> None:
        self._add_modulation(name, c_in)
        self._add(f"{name}.weight", 3, c_in)
        self._add(f"{name}.bias", 3)

    # ---------------------------------------------------------------------- forward

    def _scales(self, name: str, ws: Tensor, row: int, delta: Delta | None) -> Tensor:
        """Return the factor of each input channel, [B, C]."""
        return self._style(name, ws[:, row] / self.code_norm, delta)

    def _conv(
        self, name: str, x: Tensor, scales: Tensor, delta: Delta | None, up: bool = False
    ) -> Tensor:
        b, c, h, w = x.shape
        scales = scales / math.sqrt(9 * c)
        kernel = self._get(f"{name}.weight", delta, b) * scales[:, None, :, None, None]
        norm = torch.rsqrt(kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        # The gain sqrt(2) of the activation can be applied before it as well.
        kernel = kernel * (norm * math.sqrt(2))
        x = x.reshape(1, b * c, h, w)
        if up:
            kernel = kernel.transpose(1, 2).flatten(0, 1)
            x = F.conv_transpose2d(x, kernel, stride=2, groups=b)
            taps = self.filter.expand(x.shape[1], 1, 4, 4)
            x = F.conv2d(x, taps, padding=1, groups=x.shape[1])
        else:
            x = F.conv2d(x, kernel.flatten(0, 1), padding=1, groups=b)
        noise = self._noise(name, delta, b).unsqueeze(1)
        strength = self._get(f"{name}.noise_strength", delta, b)[:, :, None, None]
        bias = self._get(f"{name}.bias", delta, b)[:, :, None, None]
        x = x.reshape(b, -1, *x.shape[2:])
        return F.leaky_relu_(x + math.sqrt(2) * (strength * noise + bias), 0.2)

    def _noise(self, name: str, delta: Delta | None, batch: int) -> Tensor:
        return self._moved(self.noise(name).unsqueeze(0), f"{name}.noise", delta, batch)

    def _rgb(
        self, name: str, x: Tensor, scales: Tensor, delta: Delta | None, skip: Tensor | None
    ) -> Tensor:
        b, c, h, w = x.shape
        weight = self._get(f"{name}.weight", delta, b) * (scales / math.sqrt(c))[:, None, :]
        bias = self._get(f"{name}.bias", delta, b).unsqueeze(2)
        y = torch.baddbmm(bias.expand(b, -1, h * w), weight, x.reshape(b, c, h * w))
        y = y.reshape(b, 3, h, w)
        if skip is None:
            return y
        taps = self.filter.expand(3, 1, 4, 4)
        return y + F.conv_transpose2d(skip, taps, stride=2, padding=1, groups=3)

    def _run(
        self,
        x: Tensor,
        skip: Tensor,
        ws: Tensor,
        first: int,
        last: int,
        delta: Delta | None,
        taps: Taps | None,
    ) -> tuple[Tensor, Tensor]:
        for k in range(first, last):
            scales = self._scales(f"convs.{k}", ws, k + 1, delta)
            x = self._conv(f"convs.{k}", x, scales, delta, up=k % 2 == 0)
            if k % 2:
                name = f"to_rgbs.{k // 2}"
                skip = self._rgb(name, x, self._scales(name, ws, k + 2, delta), delta, skip)
            x = self._tapped(x, self.places[k + 1], taps)
        return x, skip

    @property
    def feature_place(self) -> Place:
        return self.places[self.feature_layer - 1]

    def trunk(
        self, ws: Tensor, delta: Delta | None = None, taps: Taps | None = None
    ) -> tuple[Tensor, Tensor]:
        self._check(ws)
        x = self._get("input", delta, len(ws)).expand(len(ws), -1, -1, -1)
        x = self._conv("conv1", x, self._scales("conv1", ws, 0, delta), delta)
        skip = self._rgb("to_rgb1", x, self._scales("to_rgb1", ws, 1, delta), delta, None)
        x = self._tapped(x, self.places[0], taps)
        return self._run(x, skip, ws, 0, self.feature_layer - 1, delta, taps)

    def from_feature(
        self,
        x: Tensor,
        ws: Tensor,
        delta: Delta | None = None,
        skip: Tensor | None = None,
        taps: Taps | None = None,
    ) -> Tensor:
        if skip is None:
            raise ValueError(
                "StyleGAN2 sums images of all sizes: give from_feature the second result of trunk"
            )
        return self._run(x, skip, ws, self.feature_layer - 1, self.convs, delta, taps)[1]

    # ---------------------------------------------------------------------- latents

    def modulated(self, row: int) -> list[str]:
        names = ["conv1" if row == 0 else f"convs.{row - 1}"] if row <= self.convs else []
        if row % 2:
            names.append("to_rgb1" if row == 1 else f"to_rgbs.{(row - 3) // 2}")
        return names

    def in_trunk(self, layer: str) -> bool:
        name, _, number = layer.partition(".")
        if not number:
            return True
        last = int(number) if name == "convs" else 2 * int(number) + 1
        return last < self.feature_layer - 1

    def expand_direction(self, direction: Tensor) -> Tensor:
        if direction.shape == (STYLE_WIDTH,):
            return direction.expand(self.num_ws, -1)
        if direction.shape == (self.num_ws, STYLE_WIDTH):
            return direction
        raise ValueError(
            f"direction of shape {list(direction.shape)} does not fit this generator: expected "
            f"[512] or [{self.num_ws}, 512]"
        )
