"""The StyleGAN2 test bed in training: a fast forward pass, and a start from its teacher."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2

Params = Mapping[str, Tensor]
WIDTHS = (256, 256, 256, 128, 64, 32)


def student(teacher: MobileStyleGAN, widths: Sequence[int] = WIDTHS) -> StyleGAN2:
    """Return the student with the mapping network of its teacher and no other weights."""
    net = StyleGAN2(widths, mapping_layers=teacher.mapping_layers)
    with torch.no_grad():
        for name in net.weight_names("mapping."):
            net.weight(name).copy_(teacher.weight(name))
        net.w_mean.copy_(teacher.w_mean)
    return net


def dense(net: StyleGAN2, ws: Tensor, params: Params, dtype: torch.dtype) -> list[Tensor]:
    """Return the images of all resolutions, [B, 3, s, s] for s = 4, 8, ... px.

    The last one is that of `StyleGAN2.synthesize`, computed with dense convolutions: features are
    multiplied by the styles and results by the demodulation, which is equal and takes a fraction of
    the time in training.

    Args:
        net: The network, whose sizes, noise and filter are used.
        ws: W+ codes, [B, L, 512]. Fewer rows than `net.num_ws` give fewer images.
        params: Weights by the names of `net`.
        dtype: Of the convolutions.
    """
    images: list[Tensor] = []
    taps = net.filter.expand(3, 1, 4, 4)
    for _, x, row in layers(net, ws, params, dtype):
        if row % 2 == 0:
            block = row // 2 - 1
            head = "to_rgb1" if row == 0 else f"to_rgbs.{block}"
            image = _rgb(params, head, x, ws[:, row + 1])
            if images:
                image = image + F.conv_transpose2d(images[-1], taps, stride=2, padding=1, groups=3)
            images.append(image)
    return images


def layers(
    net: StyleGAN2, ws: Tensor, params: Params, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor, int]]:
    """Yield name, features [B, C, s, s] and row of the code of each convolution; see `dense`."""
    x = params["input"].expand(len(ws), -1, -1, -1)
    x = x.to(dtype, memory_format=torch.channels_last)
    for row in range(ws.shape[1] - 1):
        name = "conv1" if row == 0 else f"convs.{row - 1}"
        x = _conv(net, params, name, x, ws[:, row], up=row % 2 == 1)
        yield name, x, row


def style(params: Params, name: str, w: Tensor) -> Tensor:
    """Return the factors of the input channels of a layer, [B, C]."""
    weight, bias = params[f"{name}.modulation.weight"], params[f"{name}.modulation.bias"]
    return F.linear(w, weight, bias)


def _conv(
    net: StyleGAN2, params: Params, name: str, x: Tensor, w: Tensor, up: bool = False
) -> Tensor:
    c = x.shape[1]
    scales = style(params, name, w)
    kernel = params[f"{name}.weight"] / math.sqrt(9 * c)
    norm = torch.rsqrt(scales.square() @ kernel.square().sum((2, 3)).T + 1e-8) * math.sqrt(2)
    kernel = kernel.to(x.dtype)
    x = x * scales.to(x.dtype)[:, :, None, None]
    if up:
        x = F.conv_transpose2d(x, kernel.transpose(0, 1), stride=2)
        taps = net.filter.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        x = F.conv2d(x, taps, padding=1, groups=x.shape[1])
    else:
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, kernel, padding=1)
    noise = net.noise(name) * params[f"{name}.noise_strength"]
    offset = math.sqrt(2) * (noise + params[f"{name}.bias"][:, None, None])
    x = torch.addcmul(offset[None].to(x.dtype), x, norm.to(x.dtype)[:, :, None, None])
    return F.leaky_relu_(x, 0.2)


def _rgb(params: Params, name: str, x: Tensor, w: Tensor) -> Tensor:
    b, c, h, width = x.shape
    scales = style(params, name, w) / math.sqrt(c)
    kernel = params[f"{name}.weight"] * scales[:, None, :]
    flat = x.permute(0, 2, 3, 1).reshape(b, h * width, c)
    y = torch.bmm(flat, kernel.transpose(1, 2).to(x.dtype)).float()
    return y.transpose(1, 2).reshape(b, 3, h, width) + params[f"{name}.bias"][:, None, None]


class Coordinates:
    """Coordinates of W in which the codes of the teacher have equal variance in most directions.

    Codes vary a hundred times as much in some directions as in others. Adam with equal steps for
    all entries of a modulation follows such a landscape badly.

    Args:
        w: Codes, [N, 512].
        floor: Smallest standard deviation that counts, relative to the largest one.
    """

    def __init__(self, w: Tensor, floor: float = 0.1) -> None:
        self.mean = w.mean(0)
        values, self.basis = torch.linalg.eigh((w - self.mean).T.cov())
        self.spread = values.clamp_min(0).sqrt().clamp_min(floor * values[-1].sqrt())

    def encode(self, w: Tensor) -> Tensor:
        """Return the coordinates of codes [..., 512]."""
        return (w - self.mean) @ self.basis / self.spread

    def from_weights(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a modulation of coordinates that equals that of codes."""
        weight = weight / math.sqrt(weight.shape[1])
        return weight @ self.basis * self.spread, bias + weight @ self.mean

    def to_weights(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Invert `from_weights`."""
        weight = weight / self.spread @ self.basis.T
        return weight * math.sqrt(weight.shape[1]), bias - weight @ self.mean


@torch.no_grad()
def coordinates(teacher: MobileStyleGAN) -> Coordinates:
    """Return the coordinates of W by 4,096 codes of the teacher with truncation 0.75."""
    z = torch.randn(4096, 512, generator=torch.Generator().manual_seed(0))
    return Coordinates(teacher.map(z, 0.75))
