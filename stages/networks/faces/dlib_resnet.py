"""The face descriptor network of dlib in torch, with the weights of dlib's own file.

A residual network (He et al., arXiv 1512.03385) with 29 convolutions, as King describes it in the
announcement of dlib's face recognition. Convolutions with a stride and poolings have no padding.
Where two branches differ in size or in the number of channels, the smaller one is filled with 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 150
# Mean colour of the pictures on which the network was trained, and the divisor after it.
_MEAN, _SCALE = (122.782, 117.001, 104.298), 256.0
# The channels of each block, and whether it halves the picture.
_BLOCKS = (
    *((32, False),) * 3,
    *((64, True), (64, False), (64, False), (64, False)),
    *((128, True), (128, False), (128, False)),
    *((256, True), (256, False), (256, False)),
    (256, True),
)
_DESCRIPTOR = 128
# Layers with weights in dlib's files, up to their weights. The length of a name stands before it,
# and the last layer has its numbers of outputs and inputs (128, 256) first.
_LAYER = re.compile(rb"\x01(?:\x05(con_4)|\x07(affine_)|\x04(fc_2)\x01\x80\x02\x00\x01)")


class DlibResNet(nn.Module):
    """Map RGB faces [B, 3, 150, 150], 0 to 255, to descriptors [B, 128]."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 7, stride=2)
        pairs = []
        before = 32
        for channels, halves in _BLOCKS:
            stride, padding = (2, 0) if halves else (1, 1)
            pairs += [
                nn.Conv2d(before, channels, 3, stride=stride, padding=padding),
                nn.Conv2d(channels, channels, 3, padding=1),
            ]
            before = channels
        self.pairs = nn.ModuleList(pairs)
        self.last = nn.Linear(before, _DESCRIPTOR, bias=False)
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, faces: Tensor) -> Tensor:
        x = F.relu(self.first((faces - self.mean) / _SCALE))
        x = F.max_pool2d(x, 3, stride=2)
        for (_, halves), one, two in zip(_BLOCKS, self.pairs[::2], self.pairs[1::2], strict=True):
            inner = two(F.relu(one(x)))
            outer = F.avg_pool2d(x, 2) if halves else x
            shape = [max(sides) for sides in zip(inner.shape, outer.shape, strict=True)]
            x = F.relu(_grown(inner, shape) + _grown(outer, shape))
        return self.last(x.mean((2, 3)))


def _grown(x: Tensor, shape: list[int]) -> Tensor:
    """Fill [B, C, H, W] with 0 at the end of each axis to a shape."""
    missing = [wanted - side for wanted, side in zip(shape, x.shape, strict=True)]
    return F.pad(x, [n for m in reversed(missing[1:]) for n in (0, m)]) if any(missing) else x


def load(path: Path) -> DlibResNet:
    """Read the network from `dlib_face_recognition_resnet_model_v1.dat`.

    Raises:
        ValueError: The file has other layers.
    """
    net = DlibResNet()
    convolutions = [net.first, *net.pairs]
    found = list(_layers(path.read_bytes()))
    names = [name for name, _ in found]
    sizes = [len(values) for _, values in found]
    expected: list[tuple[str, int]] = []
    for conv in convolutions:
        expected += [
            ("con_4", conv.weight.numel() + len(conv.bias)),
            ("affine_", 2 * len(conv.bias)),
        ]
    expected.append(("fc_2", net.last.weight.numel()))
    if list(zip(names, sizes, strict=True)) != expected:
        raise ValueError(
            f"{path} is not the face descriptor network of dlib: its layers or their sizes differ; "
            "pull the model `dlib-face-resnet` again"
        )
    values = [torch.from_numpy(array) for _, array in found]
    with torch.no_grad():
        for conv, kernel, affine in zip(convolutions, values[:-1:2], values[1:-1:2], strict=True):
            count = len(conv.bias)
            # The affine layer after each convolution is a part of its weights.
            gain, shift = affine[:count], affine[count:]
            conv.weight.copy_(
                kernel[:-count].reshape(conv.weight.shape) * gain.reshape(-1, 1, 1, 1)
            )
            conv.bias.copy_(kernel[-count:] * gain + shift)
        net.last.weight.copy_(values[-1].reshape(-1, _DESCRIPTOR).T)
    return net.eval().requires_grad_(False)


def _layers(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the weights of each layer in the order of the forward pass, float32 [N].

    dlib writes an integer as a byte with the number of its bytes, and these, the lowest first. A
    tensor is the integer 2, four integers for its sides, and its values as little-endian float32.
    """
    place = 0
    while match := _LAYER.search(content, place):
        place = match.end()
        sides = []
        for _ in range(5):
            length = content[place]
            sides.append(int.from_bytes(content[place + 1 : place + 1 + length], "little"))
            place += 1 + length
        count = int(np.prod(sides[1:]))
        yield (
            match[match.lastindex or 0].decode(),
            np.frombuffer(content, "<f4", count, place).copy(),
        )
        place += 4 * count
