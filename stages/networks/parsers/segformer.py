"""SegFormer face parsing: the 19 classes of CelebAMask-HQ from a trained transformer.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers"
(arXiv 2105.15203), in the size B5 and with the weights of jonathandinu/face-parsing. Modules have
the names of its weights, which are those of the package transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dhr_batch.stages.networks.files import weight_files
from dhr_batch.stages.networks.parsers.picture_parser import PictureParser, resized

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context

# The four stages of size B5: channels, blocks, attention heads, and the factor by which the side of
# the map is reduced before keys and values are taken from it.
CHANNELS, DEPTHS = (64, 128, 320, 512), (3, 6, 40, 3)
HEADS, REDUCTIONS = (1, 2, 5, 8), (8, 4, 2, 1)
# Kernel and stride of the convolution that begins a stage.
PATCHES = (7, 4), (3, 2), (3, 2), (3, 2)
HEAD_CHANNELS = 768
# Order of the published network, in the names of this project; left and right as in its data.
ORDER = (
    "background",
    "face",
    "nose",
    "glasses",
    "left_eye",
    "right_eye",
    "left_brow",
    "right_brow",
    "left_ear",
    "right_ear",
    "inner_mouth",
    "upper_lip",
    "lower_lip",
    "hair",
    "hat",
    "earring",
    "necklace",
    "neck",
    "cloth",
)


def _tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W, C]."""
    return x.flatten(2).transpose(1, 2)


def _map(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, H W, C] -> [B, C, H, W] with the size of `like`."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


class _Patches(nn.Module):
    """Convolution that begins a stage, and a normalisation of channels."""

    def __init__(self, inp: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inp, out, kernel, stride, kernel // 2)
        self.layer_norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return _map(self.layer_norm(_tokens(x)), x)


class _SelfAttention(nn.Module):
    """Attention of all places to the places of a reduced map."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.layer_norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, like: Tensor) -> Tensor:
        seen = tokens
        if self.reduction > 1:
            seen = self.layer_norm(_tokens(self.sr(_map(tokens, like))))
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, tokens), (self.key, seen), (self.value, seen))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class _MixFFN(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.dense1 = nn.Linear(channels, wide)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(wide, wide, 3, 1, 1, groups=wide)})
        self.dense2 = nn.Linear(wide, channels)

    def forward(self, tokens: Tensor, like: Tensor) -> Tensor:
        x = self.dwconv["dwconv"](_map(self.dense1(tokens), like))
        return self.dense2(F.gelu(_tokens(x)))


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.layer_norm_1, self.layer_norm_2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = nn.ModuleDict(
            {
                "self": _SelfAttention(channels, heads, reduction),
                "output": nn.ModuleDict({"dense": nn.Linear(channels, channels)}),
            }
        )
        self.mlp = _MixFFN(channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = _tokens(x)
        seen = self.attention["self"](self.layer_norm_1(tokens), x)
        tokens = tokens + self.attention["output"].get_submodule("dense")(seen)
        return _map(tokens + self.mlp(self.layer_norm_2(tokens), x), x)


class _Encoder(nn.Module):
    """Map images [B, 3, H, W] to features [B, C, H/n, W/n] of four stages, n = 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *CHANNELS[:-1])
        self.patch_embeddings = nn.ModuleList(
            _Patches(inp, out, *patch)
            for inp, out, patch in zip(inputs, CHANNELS, PATCHES, strict=True)
        )
        self.block = nn.ModuleList(
            nn.ModuleList(_Block(channels, heads, reduction) for _ in range(depth))
            for channels, depth, heads, reduction in zip(
                CHANNELS, DEPTHS, HEADS, REDUCTIONS, strict=True
            )
        )
        self.layer_norm = nn.ModuleList(nn.LayerNorm(channels) for channels in CHANNELS)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for patches, blocks, norm in zip(
            self.patch_embeddings, self.block, self.layer_norm, strict=True
        ):
            x = patches(x)
            for block in blocks.children():
                x = block(x)
            x = _map(norm(_tokens(x)), x)
            features.append(x)
        return features


class _Head(nn.Module):
    """Map the features of all stages to logits [B, 19, H/4, W/4]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_c = nn.ModuleList(
            nn.ModuleDict({"proj": nn.Linear(channels, HEAD_CHANNELS)}) for channels in CHANNELS
        )
        self.linear_fuse = nn.Conv2d(4 * HEAD_CHANNELS, HEAD_CHANNELS, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(HEAD_CHANNELS)
        self.classifier = nn.Conv2d(HEAD_CHANNELS, len(ORDER), 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        levels = []
        for layer, x in zip(self.linear_c, features, strict=True):
            x = _map(layer.get_submodule("proj")(_tokens(x)), x)
            levels.append(F.interpolate(x, size=size, mode="bilinear"))
        # The weights expect the last stage first.
        x = self.linear_fuse(torch.cat(levels[::-1], 1))
        return self.classifier(F.relu(self.batch_norm(x)))


class SegFormer(nn.Module):
    """Map normalised images [B, 3, H, W] to logits [B, 19, H/4, W/4] in `ORDER`."""

    def __init__(self) -> None:
        super().__init__()
        self.segformer = nn.ModuleDict({"encoder": _Encoder()})
        self.decode_head = _Head()

    def forward(self, images: Tensor) -> Tensor:
        return self.decode_head(self.segformer["encoder"](images))


class SegFormerParser(PictureParser):
    """The parser `segformer`, whose logits at 128 px are resized to the picture."""

    name = "segformer"
    order = ORDER

    def probabilities(self, batch: Tensor, size: tuple[int, ...]) -> Tensor:
        return resized(self.net(batch), size).softmax(1)


def load(path: Path) -> SegFormer:
    """Load the network from the published safetensors file.

    Raises:
        ValueError: It is no such file, or weights are missing, unknown or of another shape.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file: {error}; the published one is model.safetensors"
        ) from error
    with torch.device("meta"):
        net = SegFormer()
    return weight_files.fill(net, weights, path)


def segformer(context: Context) -> SegFormerParser:
    """Load the parser `segformer` from the model `segformer-face-parsing`."""
    return SegFormerParser(load(context.models("segformer-face-parsing")).to(context.device))
