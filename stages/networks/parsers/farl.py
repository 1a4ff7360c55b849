"""FaRL face parsing: the 19 classes of CelebAMask-HQ from a trained vision transformer.

Zheng et al., "General Facial Representation Learning in a Visual-Linguistic Manner" (arXiv
2112.03109). The network is the ViT-B/16 of CLIP at 448 px with an UPerNet head (Xiao et al., arXiv
1807.10221). It sees a crop that five points of the face align, and its logits are warped back.
Modules have the published names of their weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.networks.files import checkpoints, weight_files
from dhr_batch.stages.networks.parsers.face_parts import CLASSES
from dhr_batch.stages.networks.transfers import to_device

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.networks.faces.detect import Detector

SIDE, PATCH, LAYERS, HEADS = 448, 16, 12, 12
# Blocks whose outputs the head uses, and the side of its logits.
TAPS = (3, 5, 7, 11)
LOGITS = 512
POOLS = (1, 2, 3, 6)
# Eyes, nose tip and mouth corners in a crop of 512 px whose face is not yet reduced by `SCALE`.
TEMPLATE = np.array([(196, 226), (316, 226), (256, 286), (220, 360.4), (292, 360.4)])
SCALE = 0.8
# Parts of the published network that parsing does not use.
UNUSED = ("backbone.visual.ln_post.", "backbone.visual.proj")


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Block(nn.Module):
    """Transformer block with normalisation before attention and before the perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", _QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.ln_1(tokens)
        tokens = tokens + self.attn(x, x, x, need_weights=False)[0]
        return tokens + self.mlp(self.ln_2(tokens))


class _Vision(nn.Module):
    """Map normalised images [B, 3, 448, 448] to features [B, width, 28, 28] of blocks `TAPS`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((SIDE // PATCH) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        blocks = nn.ModuleList(_Block(width) for _ in range(LAYERS))
        self.transformer = nn.ModuleDict({"resblocks": blocks})

    def forward(self, images: Tensor) -> list[Tensor]:
        patches = self.conv1(images)
        first = self.class_embedding.expand(len(images), 1, -1)
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], 1)
        tokens = self.ln_pre(tokens + self.positional_embedding)
        features = []
        for block in self.transformer.get_submodule("resblocks").children():
            tokens = block(tokens)
            features.append(tokens[:, 1:].transpose(1, 2).unflatten(2, patches.shape[2:]))
        return [features[i] for i in TAPS]


class _Backbone(nn.Module):
    """Map images [B, 3, 448, 448] in [0, 1] to features of 112, 56, 28 and 14 px."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("image_mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("image_std", torch.ones(1, 3, 1, 1))
        self.image_mean: Tensor
        self.image_std: Tensor
        self.visual = _Vision(width)

        def twice() -> nn.Module:
            return nn.ConvTranspose2d(width, width, 2, 2)

        four_times = nn.Sequential(twice(), nn.BatchNorm2d(width), nn.GELU(), twice())
        self.fpns = nn.ModuleList([four_times, twice(), nn.Identity(), nn.MaxPool2d(2, 2)])

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.visual((images - self.image_mean) / self.image_std)
        return [layer(x) for layer, x in zip(self.fpns, features, strict=True)]


class _Conv(nn.Module):
    """Convolution, batch normalisation and ReLU, without a change of size."""

    def __init__(self, inp: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _UPerHead(nn.Module):
    """Map features of four sizes, finest first, to logits [B, 19, h, w] of the finest size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), _Conv(width, width, 1)) for side in POOLS
        )
        self.bottleneck = _Conv((len(POOLS) + 1) * width, width, 3)
        self.lateral_convs = nn.ModuleList(_Conv(width, width, 1) for _ in TAPS[:-1])
        self.fpn_convs = nn.ModuleList(_Conv(width, width, 3) for _ in TAPS[:-1])
        self.fpn_bottleneck = _Conv(len(TAPS) * width, width, 3)
        self.conv_seg = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        last = features[-1]
        pooled = [_enlarged(layer(last), last) for layer in self.psp_modules]
        levels = [self.bottleneck(torch.cat([last, *pooled], 1))]
        for layer, x in zip(reversed(self.lateral_convs), reversed(features[:-1]), strict=True):
            lateral = layer(x)
            levels.insert(0, lateral + _enlarged(levels[0], lateral))
        outputs = [layer(x) for layer, x in zip(self.fpn_convs, levels[:-1], strict=True)]
        outputs.append(levels[-1])
        merged = torch.cat([_enlarged(x, outputs[0]) for x in outputs], 1)
        return self.conv_seg(self.fpn_bottleneck(merged))


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear")


class FaRL(nn.Module):
    """Map crops [B, 3, 448, 448] in [0, 1] to logits [B, 19, 512, 512] in the order of `CLASSES`.

    Args:
        width: Channels of all layers, 768 as published.
    """

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.backbone = _Backbone(width)
        self.head = nn.ModuleDict({"head": _UPerHead(width)})

    def forward(self, crops: Tensor) -> Tensor:
        logits = self.head["head"](self.backbone(crops))
        return F.interpolate(logits, size=(LOGITS, LOGITS), mode="bilinear")


def crop_matrix(points: np.ndarray) -> np.ndarray:
    """Return the similarity from pixels of a picture to those of the crop, float64 [3, 3].

    It minimises the squared distances of the points of the face from the published template.

    Args:
        points: Eyes, nose tip and mouth corners, [5, 2]; of each pair the left one first.
    """
    wanted = ((TEMPLATE / 256 - 1) * SCALE + 1) * (SIDE - 1) / 2
    # As complex numbers, a similarity is z -> a z + b.
    given, wanted = (p[:, 0] + 1j * p[:, 1] for p in (np.asarray(points, np.float64), wanted))
    centred = given - given.mean()
    a = np.vdot(centred, wanted) / np.vdot(centred, centred)
    b = wanted.mean() - a * given.mean()
    return np.array([(a.real, -a.imag, b.real), (a.imag, a.real, b.imag), (0, 0, 1)])


def warp(images: Tensor, matrix: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resample images [B, C, h, w] bilinearly to the height and width `size`, black outside.

    Args:
        images: The images.
        matrix: Maps points (x, y, 1) of the result to those of the images, [3, 3], in pixels that
            have their centres at halves.
        size: Height and width of the result.
    """
    height, width = images.shape[2:]
    to_unit = np.array([(2 / width, 0, -1), (0, 2 / height, -1), (0, 0, 1)])
    from_unit = np.array([(size[1] / 2, 0, size[1] / 2), (0, size[0] / 2, size[0] / 2), (0, 0, 1)])
    theta = torch.from_numpy((to_unit @ matrix @ from_unit)[None, :2]).to(images)
    shape = (len(images), images.shape[1], *size)
    grid = F.affine_grid(theta.expand(len(images), -1, -1), list(shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


class FaRLParser:
    """The parser `farl`.

    It differs from the one that DHR was published with in two points. The five points are those of
    the largest face that MTCNN finds, instead of the best one of a RetinaFace detector. And the
    crop is warped back to where it was, as in later versions of the published code; the one of DHR
    displaces the result by half a pixel of the picture and half a pixel of the crop, about 2 px at
    1024 px. Where the crop ends, all classes are equally likely.

    Args:
        net: The network.
        detector: Finds the face and its five points.
    """

    name = "farl"

    def __init__(self, net: nn.Module, detector: Detector) -> None:
        self.net, self.detector = net, detector

    @torch.no_grad()
    def parse(self, image: np.ndarray) -> np.ndarray | None:
        """See `Parser.parse`."""
        faces = self.detector.detect([image])[0]
        if not faces:
            return None
        to_crop = crop_matrix(faces[0].points)
        device = next(self.net.parameters()).device
        pixels = to_device(torch.from_numpy(np.ascontiguousarray(image)), device)
        picture = pixels.permute(2, 0, 1).unsqueeze(0).float() / 255
        logits = self.net(warp(picture, np.linalg.inv(to_crop), (SIDE, SIDE)))
        to_logits = np.diag([LOGITS / SIDE, LOGITS / SIDE, 1]) @ to_crop
        back = warp(logits, to_logits, (image.shape[0], image.shape[1]))
        return back.softmax(1)[0].cpu().numpy()


def load(path: Path) -> FaRL:
    """Load the network from the published TorchScript file, whose code is not run.

    Raises:
        ValueError: It is no such file, or weights are missing, unknown or of another shape.
    """
    weights = checkpoints.read_script(path)
    weights = {k: v for k, v in weights.items() if not k.startswith(UNUSED)}
    first = weight_files.part(weights, "backbone.visual.conv1.weight", path)
    with torch.device("meta"):
        net = FaRL(first.shape[0])
    return weight_files.fill(net, weights, path)


def farl(context: Context) -> FaRLParser:
    """Load the parser `farl` from the model `farl-celebm-448`."""
    net = load(context.models("farl-celebm-448")).to(context.device)
    return FaRLParser(net, context.network("detector", "mtcnn"))
