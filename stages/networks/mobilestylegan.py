"""MobileStyleGAN: a StyleGAN2 distilled to separable convolutions and wavelet upsampling.

Belousov, "MobileStyleGAN: A Lightweight Convolutional Neural Network for High-Fidelity Image
Synthesis" (arXiv 2104.04767). The published FFHQ weights share the W space of StyleGAN2-FFHQ.

Style slots (rows of a W+ code): slot 0 drives the first convolution; block ``i`` takes slots
``3i+1`` (upsample and first convolution) and ``3i+2`` (second convolution); the image head takes
slot ``3*last+3``. The remaining rows have no effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Delta = Mapping[str, Tensor]

FFHQ_CHANNELS = (512, 512, 512, 512, 512, 256, 128, 64)
STYLE_WIDTH = 512
# StyleGAN2-FFHQ has 18 rows; its RGB rows share a slot with the next convolution, hence the gaps.
STYLEGAN2_ROWS = {0: 0, 15: 21} | {2 * i + k: 3 * i + k for i in range(7) for k in (1, 2)}


def inverse_haar(bands: Tensor) -> Tensor:
    """Inverse 2-D Haar transform.

    bands: [B, 4C, H, W]; the first C channels are the low band, the other 3C the high bands,
    interleaved per channel. Returns [B, C, 2H, 2W].
    """
    b, c4, h, w = bands.shape
    c = c4 // 4
    low = bands[:, :c] * 0.5
    high = bands[:, c:].reshape(b, c, 3, h, w) * 0.5
    h0, h1, h2 = high.unbind(2)
    p, q, r, s = low + h0, low - h0, h1 + h2, h1 - h2
    return F.pixel_shuffle(torch.stack([p + r, p - r, q + s, q - s], 2).flatten(1, 2), 2)


class MobileStyleGAN(nn.Module):
    """Mapping and synthesis, differentiable in the latent, the weights and the feature layer.

    channels: widths at 4, 8, 16, ... px; one synthesis block per entry after the first.
    head: ``haar`` maps the last block to 12 wavelet channels (output twice its size), ``rgb``
    maps it to 3 channels (output of its size).
    feature_block: the block whose output is the feature layer of DHR's feature modulation.
    num_ws: rows of a W+ code; at least ``3 * blocks + 1``.

    Noise is a constant of the published network, so every render is deterministic.
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

        self.weights = nn.ParameterDict()
        self._noise_names: list[str] = []
        for i in range(8):
            self._add(f"mapping.{i}.weight", STYLE_WIDTH, STYLE_WIDTH)
            self._add(f"mapping.{i}.bias", STYLE_WIDTH)
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
        self.register_buffer("w_mean", torch.zeros(STYLE_WIDTH))
        self.w_mean: Tensor

    # ---------------------------------------------------------------------- parameters

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")

    def _add(self, name: str, *shape: int) -> None:
        self.weights[self._key(name)] = nn.Parameter(torch.zeros(shape), requires_grad=False)

    def _add_modulation(self, name: str, width: int) -> None:
        self._add(f"{name}.modulation.weight", width, STYLE_WIDTH)
        self._add(f"{name}.modulation.bias", width)

    def _add_noise(self, name: str, size: int) -> None:
        self.register_buffer("noise_" + self._key(name).replace("/", "_"), torch.zeros(size, size))
        self._noise_names.append(name)

    def _noise(self, name: str) -> Tensor:
        return getattr(self, "noise_" + name.replace(".", "_"))

    def weight_names(self, prefix: str = "") -> list[str]:
        """Names of all weights that start with `prefix`, in synthesis order."""
        return [k.replace("/", ".") for k in self.weights if k.replace("/", ".").startswith(prefix)]

    def weight(self, name: str) -> Tensor:
        """The shared weight `name` (no batch axis). Raises KeyError for an unknown name."""
        return self.weights[self._key(name)]

    def _get(self, name: str, delta: Delta | None, batch: int) -> Tensor:
        """Weight with a leading image axis: [B, *shape], or [1, *shape] where it is shared."""
        shared = self.weight(name).unsqueeze(0)
        offset = delta.get(name) if delta else None
        if offset is None:
            return shared
        if offset.shape[0] != batch:
            raise ValueError(
                f"delta {name!r} is for {offset.shape[0]} images, the codes for {batch}"
            )
        return shared + offset

    # ---------------------------------------------------------------------- forward

    def map(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """z [B, 512] ~ N(0, I) -> w [B, 512]; `truncation` pulls towards the mean latent."""
        w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for i in range(8):
            w = F.linear(w, self.weight(f"mapping.{i}.weight"), self.weight(f"mapping.{i}.bias"))
            w = F.leaky_relu(w, 0.2) * math.sqrt(2)
        return self.w_mean + truncation * (w - self.w_mean) if truncation != 1.0 else w

    def broadcast(self, w: Tensor) -> Tensor:
        """w [B, 512] -> W+ code [B, num_ws, 512] with equal rows."""
        return w.unsqueeze(1).expand(-1, self.num_ws, -1)

    def _style(self, name: str, style: Tensor, delta: Delta | None) -> Tensor:
        b = style.shape[0]
        weight = self._get(f"{name}.modulation.weight", delta, b)
        bias = self._get(f"{name}.modulation.bias", delta, b)
        if weight.shape[0] == 1:
            return F.linear(style, weight[0]) + bias
        return torch.bmm(weight, style.unsqueeze(2)).squeeze(2) + bias

    def _conv(self, name: str, x: Tensor, style: Tensor, delta: Delta | None) -> Tensor:
        b, c, h, w = x.shape
        s = self._style(name, style, delta) / math.sqrt(9 * c)
        bias = self._get(f"{name}.bias", delta, b)
        offset = self._noise(name).reshape(1, 1, h * w) + bias.unsqueeze(2)
        weight = self._get(f"{name}.weight", delta, b)
        if name == "conv1":
            kernel = weight * s[:, None, :, None, None]
            y = F.conv2d(x.reshape(1, b * c, h, w), kernel.flatten(0, 1), padding=1, groups=b)
            y = y.reshape(b, -1, h * w) + offset
        else:
            # The style scales the depthwise kernel instead of x: one pass over x less each way.
            kernel = self._get(f"{name}.weight_dw", delta, b) * s[:, :, None, None, None]
            x = F.conv2d(x.reshape(1, b * c, h, w), kernel.flatten(0, 1), padding=1, groups=b * c)
            y = torch.baddbmm(
                offset.expand(b, -1, -1), weight.expand(b, -1, -1), x.reshape(b, c, h * w)
            )
        return F.leaky_relu_(y, 0.2).reshape(b, -1, h, w)

    def _run_blocks(
        self, x: Tensor, ws: Tensor, first: int, last: int, delta: Delta | None
    ) -> Tensor:
        for i in range(first, last):
            up_style = self._style(f"layers.{i}.up", ws[:, 3 * i + 1], delta)
            x = inverse_haar(x * up_style[:, :, None, None])
            x = self._conv(f"layers.{i}.conv1", x, ws[:, 3 * i + 1], delta)
            x = self._conv(f"layers.{i}.conv2", x, ws[:, 3 * i + 2], delta)
        return x

    def to_feature(self, ws: Tensor, delta: Delta | None = None) -> Tensor:
        """W+ codes [B, num_ws, 512] -> feature layer [B, C, H, W] (output of `feature_block`)."""
        self._check(ws)
        x = self._get("input", delta, len(ws)).expand(len(ws), -1, -1, -1)
        x = self._conv("conv1", x, ws[:, 0], delta)
        return self._run_blocks(x, ws, 0, self.feature_block + 1, delta)

    def from_feature(self, x: Tensor, ws: Tensor, delta: Delta | None = None) -> Tensor:
        """Feature layer [B, C, H, W] -> image [B, 3, resolution, resolution], about [-1, 1]."""
        x = self._run_blocks(x, ws, self.feature_block + 1, self.blocks, delta)
        b, c, h, w = x.shape
        s = self._style("to_img", ws[:, self.head_slot], delta) / math.sqrt(c)
        weight = self._get("to_img.weight", delta, b) * s[:, None, :]
        bias = self._get("to_img.bias", delta, b).unsqueeze(2)
        y = torch.baddbmm(bias.expand(b, -1, h * w), weight, x.reshape(b, c, h * w))
        y = y.reshape(b, -1, h, w)
        return inverse_haar(y) if self.head == "haar" else y

    def synthesize(
        self,
        ws: Tensor,
        delta: Delta | None = None,
        feature: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Render W+ codes, optionally with refined weights and a replaced feature layer.

        ws: [B, num_ws, 512]. delta: per-image weight offsets, name -> [B, *shape].
        feature: [B, C, H, W], used where `mask` [B, 1, H, W] in [0, 1] is 0 (out-of-domain):
        ``x <- mask * x + (1 - mask) * feature``. Returns [B, 3, R, R], about [-1, 1], unclamped.
        """
        if (feature is None) != (mask is None):
            raise ValueError("feature and mask are given together")
        x = self.to_feature(ws, delta)
        if feature is not None and mask is not None:
            x = torch.lerp(feature, x, mask)
        return self.from_feature(x, ws, delta)

    def _check(self, ws: Tensor) -> None:
        if ws.ndim != 3 or tuple(ws.shape[1:]) != (self.num_ws, STYLE_WIDTH):
            raise ValueError(
                f"expected W+ codes of shape [B, {self.num_ws}, {STYLE_WIDTH}], "
                f"got {list(ws.shape)}"
            )

    # ---------------------------------------------------------------------- latents

    @property
    def live_rows(self) -> list[int]:
        """Rows of a W+ code that reach the image."""
        rows = [0, *(3 * i + k for i in range(self.blocks) for k in (1, 2)), self.head_slot]
        return sorted(rows)

    def expand_direction(self, direction: Tensor) -> Tensor:
        """Edit direction of shape [512], [num_ws, 512] or [18, 512] (StyleGAN2) -> [num_ws, 512].

        Raises ValueError for any other shape: a direction is never sliced or padded silently.
        """
        if direction.shape == (STYLE_WIDTH,):
            return direction.expand(self.num_ws, -1)
        if direction.shape == (self.num_ws, STYLE_WIDTH):
            return direction
        if direction.shape == (18, STYLE_WIDTH):
            rows = torch.zeros(self.num_ws, STYLE_WIDTH)
            for source, target in STYLEGAN2_ROWS.items():
                if target < self.num_ws:
                    rows[target] = direction[source]
            # A cut network's head stands for the layers above it.
            rows[self.head_slot] = direction[min(15, 2 * self.blocks + 1)]
            return rows
        raise ValueError(
            f"direction of shape {list(direction.shape)} does not fit this generator: expected "
            f"[512], [{self.num_ws}, 512] or [18, 512]"
        )

    @torch.no_grad()
    def set_w_mean(self, samples: int = 4096) -> None:
        """Set the mean latent from `samples` fixed draws (seed 0)."""
        z = torch.randn(samples, STYLE_WIDTH, generator=torch.Generator().manual_seed(0))
        self.w_mean.copy_(self.map(z.to(self.w_mean.device)).mean(0))
