"""Conversions between the arrays of a `Record` and the tensors of networks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.transfers import to_device


def images_to_tensor(images: Sequence[np.ndarray], device: str | torch.device = "cpu") -> Tensor:
    """Convert uint8 images [H, W, 3] of one size to float32 [B, 3, H, W] in [-1, 1]."""
    return to_unit(to_device(torch.from_numpy(np.stack(images)), device))


def to_unit(pictures: Tensor) -> Tensor:
    """Convert uint8 [B, H, W, 3] to float32 [B, 3, H, W] in [-1, 1], on the same device."""
    return pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def tensor_to_images(batch: Tensor) -> list[np.ndarray]:
    """Convert [B, 3, H, W] in about [-1, 1] to uint8 images [H, W, 3], rounded and clamped."""
    levels = batch.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return list(levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy())


def masks_to_tensor(masks: Sequence[np.ndarray], device: str | torch.device = "cpu") -> Tensor:
    """Convert bool masks [H, W] to float32 [B, 1, H, W] of 0 and 1."""
    return to_device(torch.from_numpy(np.stack(masks)), device).float().unsqueeze(1)


def feature_mask(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the soft mask M at the feature layer: block means of masks [B, 1, H, W]."""
    return F.adaptive_avg_pool2d(masks, size)


def downsample(images: Tensor, size: int) -> Tensor:
    """Downsample [B, C, R, R] by area to [B, C, size, size]; return smaller images unchanged."""
    return F.adaptive_avg_pool2d(images, size) if images.shape[-1] > size else images
