"""Parsers that give whole pictures to a trained segmentation network."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX
from dhr_batch.stages.networks.transfers import to_device

SIZE = 512
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PictureParser:
    """A parser that works at 512 px; other sizes are resized to it and back.

    Args:
        net: Maps normalised images [B, 3, 512, 512] to logits [B, 19, h, w] in `order`.
    """

    name: ClassVar[str]
    order: ClassVar[tuple[str, ...]]

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._order = [self.order.index(name) for name in CLASSES]
        device = next(net.parameters()).device
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).reshape(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).reshape(1, 3, 1, 1)

    @torch.no_grad()
    def parse(self, image: np.ndarray) -> np.ndarray | None:
        """See `Parser.parse`. Returns None if skin is not the most likely class of any pixel."""
        pixels = to_device(torch.from_numpy(np.ascontiguousarray(image)), self._mean.device)
        batch = pixels.permute(2, 0, 1).unsqueeze(0).float() / 255
        batch = (resized(batch, (SIZE, SIZE)) - self._mean) / self._std
        probs = self.probabilities(batch, image.shape[:2])[0, self._order]
        if not (probs.argmax(0) == INDEX["face"]).any():
            return None
        return probs.cpu().numpy()

    def probabilities(self, batch: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return probabilities [B, 19, H, W] in `order` of normalised images [B, 3, 512, 512]."""
        return resized(self.net(batch).softmax(1), size)


def resized(batch: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize [B, C, h, w] to the height and width `size`, bilinearly with antialiasing."""
    return F.interpolate(batch, size=tuple(size), mode="bilinear", antialias=True)
