"""What tests of SAM share: a parser, photographs and a reference of its filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX
from dhr_batch.stages.refine.sam import SpatiallyAdaptive

LEVELS = ("F4", "F6", "F8", "F10")


class Halves:
    """A parser that finds hair on the left, skin on the right and a brow within the skin."""

    name = "halves"

    def parse(self, image: np.ndarray) -> np.ndarray:
        probs = np.zeros((len(CLASSES), *image.shape[:2]), np.float32)
        middle = image.shape[1] // 2
        probs[INDEX["hair"], :, :middle] = 1
        probs[INDEX["face"], :, middle:] = 0.6
        probs[INDEX["left_brow"], 10:20, -20:] = 0.7
        return probs


Build = Callable[..., SpatiallyAdaptive]


def photographs(net: Any, count: int) -> tuple[Tensor, Tensor]:
    """Images of 8 bits and codes that render something near them."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        w = net.map(torch.randn(count, 512, generator=draw).double())
        ws = net.broadcast(w) + 0.02 * torch.randn(
            count, net.num_ws, 512, generator=draw, dtype=torch.float64
        )
        noise = torch.randn(count, 3, 32, 32, generator=draw).double()
        images = net.synthesize(ws) + 0.3 * F.interpolate(noise, size=net.resolution)
    return images.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1), ws


def reference_lanczos(mask: np.ndarray, size: int) -> np.ndarray:
    """A Lanczos filter of three lobes, widened by the factor of reduction, in float64."""
    factor = len(mask) / size
    centre = (np.arange(size) + 0.5) * factor
    away = (np.arange(len(mask)) + 0.5 - centre[:, None]) / factor
    weights = np.where(np.abs(away) < 3, np.sinc(away) * np.sinc(away / 3), 0)
    weights /= weights.sum(1, keepdims=True)
    return (weights @ mask.astype(float) @ weights.T).clip(0, mask.max())
