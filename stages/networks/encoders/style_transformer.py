"""Style Transformer, an encoder whose queries attend to the features of a photograph.

Hu et al., "Style Transformer for Image Inversion and Editing" (arXiv 2203.07932). The body and the
feature pyramid are those of pSp (`encoders`). One learned query per row of the code, mapped by the
generator's own mapping network, passes three decoder layers of DETR (Carion et al., arXiv
2005.12872). Modules have the published names of their weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.networks.encoders import psp as encoders
from dhr_batch.stages.networks.files import weight_files
from dhr_batch.stages.networks.generators.generator import STYLE_WIDTH
from dhr_batch.stages.networks.generators.stylegan2_layouts import MAPPING_RATE

ROWS, HEADS = 18, 4


class _Decoder(nn.Module):
    """Decoder layer of DETR with normalisation after each step and no positional encoding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, rows: Tensor, features: Tensor) -> Tensor:
        """Return rows [B, 18, C] that have attended to features [B, C, H, W]."""
        seen = features.flatten(2).transpose(1, 2)
        rows = self.norm1(rows + self.self_attn(rows, rows, rows, need_weights=False)[0])
        rows = self.norm2(rows + self.multihead_attn(rows, seen, seen, need_weights=False)[0])
        return self.norm3(rows + self.linear2(F.relu(self.linear1(rows))))


class StyleTransformer(nn.Module):
    """Map images [B, 3, 256, 256] in [-1, 1] to rows [B, 18, 512] relative to a mean code.

    The queries [18, 512] are those after the mapping network, which do not depend on the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = encoders.input_layer(3, STYLE_WIDTH // 8)
        self.body = encoders.body(encoders.UNITS, STYLE_WIDTH // 8)
        self.latlayer1 = nn.Conv2d(STYLE_WIDTH // 2, STYLE_WIDTH, 1)
        self.latlayer2 = nn.Conv2d(STYLE_WIDTH // 4, STYLE_WIDTH, 1)
        self.transformerlayer_coarse = _Decoder(STYLE_WIDTH)
        self.transformerlayer_medium = _Decoder(STYLE_WIDTH)
        self.transformerlayer_fine = _Decoder(STYLE_WIDTH)
        self.register_buffer("queries", torch.zeros(ROWS, STYLE_WIDTH))
        self.queries: Tensor

    def forward(self, images: Tensor) -> Tensor:
        fine, middle, coarse = encoders.tapped(self.body, self.input_layer(images))
        middle = encoders.enlarged(coarse, middle) + self.latlayer1(middle)
        fine = encoders.enlarged(middle, fine) + self.latlayer2(fine)
        rows = self.transformerlayer_coarse(self.queries.expand(len(images), -1, -1), coarse)
        rows = self.transformerlayer_medium(rows, middle)
        return self.transformerlayer_fine(rows, fine)


def mapped(z: Tensor, mapping: Mapping[str, Tensor]) -> Tensor:
    """Return vectors z [n, 512] after a mapping network in the layout of rosinality, [n, 512].

    Args:
        z: The vectors.
        mapping: Weights `N.weight` and `N.bias` of the layers N = 1, 2, ...
    """
    w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
    for i in range(1, len(mapping) // 2 + 1):
        weight = mapping[f"{i}.weight"] * (MAPPING_RATE / math.sqrt(w.shape[1]))
        bias = mapping[f"{i}.bias"] * MAPPING_RATE
        w = F.leaky_relu(F.linear(w, weight, bias), 0.2) * math.sqrt(2)
    return w


def load(path: Path) -> tuple[StyleTransformer, Tensor]:
    """Load the encoder and the mean code [18, 512] that its rows are relative to.

    Args:
        path: A published file, which holds `state_dict` with keys `encoder.*` and `decoder.*`,
            `latent_avg` and usually `opts`.

    Raises:
        ValueError: A key is missing or unknown, or has another shape.
    """
    checkpoint = weight_files.read(path)
    weights = weight_files.section(checkpoint, encoders.PREFIX, path)
    z = weight_files.part(weights, "z", path).float()
    if z.shape != (1, ROWS, STYLE_WIDTH):
        raise ValueError(f"{path}: encoder.z has shape {list(z.shape)}, not [1, 18, 512]")
    mapping = weight_files.section(checkpoint, "decoder.style.", path)
    try:
        weights["queries"] = mapped(z[0], {k: v.float() for k, v in mapping.items()})
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: decoder.style is not a mapping network: {error}") from error
    del weights["z"]
    with torch.device("meta"):
        net = StyleTransformer()
    weight_files.fill(net, weights, path)
    return net, encoders.mean_code(checkpoint, ROWS, path)
