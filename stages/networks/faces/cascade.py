"""The cascade of MTCNN (Zhang et al., 2016) with the networks of the package facenet-pytorch.

The package cuts out every candidate by itself and waits for the device at each. Here all candidates
of a batch are cut out at once, from sums over rectangles (Crow, "Summed-Area Tables for Texture
Mapping", 1984), and the host waits three times, once after each network. Lists of boxes are kept on
the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.networks.transfers import to_device

if TYPE_CHECKING:
    from facenet_pytorch import MTCNN

# Side of the windows of the first network in pixels.
_WINDOW = 12
# Overlaps above which the less likely one of two boxes is dropped: within a scale, and later.
_SAME_SCALE, _SAME = 0.5, 0.7
# Number of crops that a network gets at once, to bound the memory.
_AT_ONCE = 512


def detect(net: MTCNN, pictures: Tensor) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Find the faces in each picture.

    Args:
        net: The networks, thresholds and smallest size of a face.
        pictures: uint8 [B, H, W, 3] on the device of the networks.

    Returns:
        For each picture boxes [N, 4], scores [N] and points [N, 5, 2] of its faces, float32.
    """
    # This import is slow, and the driver does not need it.
    from facenet_pytorch.models.utils.detect_face import batched_nms_numpy, bbreg, rerec
    from torchvision.ops.boxes import batched_nms

    size = (pictures.shape[1], pictures.shape[2])
    boxes, images = _proposals(net, pictures)
    sums = _sums(pictures)

    shapes = ((0, 4), (0,), (0, 5, 2))
    empty = [np.zeros(shape, np.float32) for shape in shapes]
    nothing = [(empty[0], empty[1], empty[2])] * len(pictures)
    boxes, images = _visible(rerec(boxes), images, size)
    if not len(boxes):
        return nothing
    moves, chances = _looked_at(net.rnet, sums, boxes, images, 24)
    passed = chances[:, 1] > net.thresholds[1]
    boxes = torch.cat((boxes[passed, :4], chances[passed, 1:]), 1)
    images, moves = images[passed], moves[passed]
    kept = batched_nms(boxes[:, :4], boxes[:, 4], images, _SAME)
    boxes, images = rerec(bbreg(boxes[kept], moves[kept])), images[kept]

    boxes, images = _visible(boxes, images, size)
    if not len(boxes):
        return nothing
    moves, places, chances = _looked_at(net.onet, sums, boxes, images, 48)
    passed = chances[:, 1] > net.thresholds[2]
    boxes = torch.cat((boxes[passed, :4], chances[passed, 1:]), 1)
    images = images[passed]
    # The x of all points come before their y, both as shares of the box.
    shares = places[passed].unflatten(1, (2, 5)).transpose(1, 2)
    points = shares * (boxes[:, None, 2:4] - boxes[:, None, :2] + 1) + boxes[:, None, :2] - 1
    boxes = bbreg(boxes, moves[passed])
    kept = batched_nms_numpy(boxes[:, :4], boxes[:, 4], images, _SAME, "Min")
    boxes, points, images = boxes[kept], points[kept], images[kept]
    found = []
    for i in range(len(pictures)):
        own = images == i
        found.append((boxes[own, :4].numpy(), boxes[own, 4].numpy(), points[own].numpy()))
    return found


def _proposals(net: MTCNN, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes with their scores, float32 [N, 5], and the indices of their pictures, [N]."""
    from facenet_pytorch.models.utils.detect_face import generateBoundingBox
    from torchvision.ops.boxes import batched_nms

    levels = pictures.permute(0, 3, 1, 2).float()
    height, width = levels.shape[2:]
    scale = _WINDOW / net.min_face_size
    side = min(height, width) * scale
    maps, scales = [], []
    while side >= _WINDOW:
        small = (int(height * scale + 1), int(width * scale + 1))
        moves, chances = net.pnet(_normalised(F.interpolate(levels, small, mode="area")))
        maps.append(torch.cat((moves, chances[:, 1:]), 1))
        scales.append(scale)
        scale, side = scale * net.factor, side * net.factor
    everything = torch.cat([m.flatten(2) for m in maps], 2).cpu()
    boxes, images = [], []
    parts = everything.split([m[0, 0].numel() for m in maps], 2)
    for scale, part, shape in zip(scales, parts, (m.shape[2:] for m in maps), strict=True):
        part = part.unflatten(2, shape)
        found, of = generateBoundingBox(part[:, :4], part[:, 4], scale, net.thresholds[0])
        kept = batched_nms(found[:, :4], found[:, 4], of, _SAME_SCALE)
        boxes.append(found[kept])
        images.append(of[kept])
    every, of = torch.cat(boxes), torch.cat(images)
    kept = batched_nms(every[:, :4], every[:, 4], of, _SAME)
    every, of = every[kept], of[kept]
    sides = (every[:, 2:4] - every[:, :2]).repeat(1, 2)
    return torch.cat((every[:, :4] + every[:, 5:] * sides, every[:, 4:5]), 1), of


def _visible(boxes: Tensor, images: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Leave out boxes that lie outside the picture."""
    top, bottom, left, right = _edges(boxes, size)
    inside = (bottom > top) & (right > left)
    return boxes[inside], images[inside]


def _edges(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return the first row, the row after the last, and the same of columns, int64 [N] each.

    Boxes count pixels from 1, and are cut at the edges of the picture.
    """
    left, top, right, bottom = boxes[:, :4].trunc().long().unbind(1)
    return (
        top.clamp(min=1) - 1,
        bottom.clamp(max=size[0]),
        left.clamp(min=1) - 1,
        right.clamp(max=size[1]),
    )


def _normalised(levels: Tensor) -> Tensor:
    return (levels - 127.5) * 0.0078125


def _sums(pictures: Tensor) -> Tensor:
    """Return the sums over all rectangles from the top left corner, int32 [B, H + 1, W + 1, 3].

    They are exact up to 8 million pixels, more than a search has.
    """
    sums = pictures.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    return F.pad(sums, (0, 0, 1, 0, 1, 0))


def _looked_at(
    net: nn.Module, sums: Tensor, boxes: Tensor, images: Tensor, side: int
) -> list[Tensor]:
    """Show a network the content of boxes at `side` px; return its outputs on the CPU.

    A pixel of a crop is the mean of the pixels that it touches, as in `adaptive_avg_pool2d`.
    """
    size = (sums.shape[1] - 1, sums.shape[2] - 1)
    placed = to_device(torch.stack((images, *_edges(boxes, size)), 1), sums.device)
    steps = torch.arange(side, device=sums.device)
    outputs = []
    for some in placed.split(_AT_ONCE):
        of, top, bottom, left, right = (column[:, None] for column in some.unbind(1))
        edges = []
        for low, high in ((top, bottom), (left, right)):
            length = high - low
            edges.append(low + steps * length // side)
            edges.append(low + ((steps + 1) * length + side - 1) // side)
        first, last, west, east = edges
        of, first, last = of[:, :, None], first[:, :, None], last[:, :, None]
        west, east = west[:, None], east[:, None]
        total = sums[of, last, east] - sums[of, first, east]
        total = total - sums[of, last, west] + sums[of, first, west]
        count = (last - first) * (east - west)
        crops = total.float() / count[..., None]
        found = net(_normalised(crops.permute(0, 3, 1, 2)))
        outputs.append(torch.cat(found, 1))
        widths = [part.shape[1] for part in found]
    return list(torch.cat(outputs).cpu().split(widths, 1))
