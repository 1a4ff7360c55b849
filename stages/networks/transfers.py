"""Copies between the host and a device, with as few waits of the host as possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_device(tensor: Tensor, device: str | torch.device) -> Tensor:
    """Return a tensor of the CPU on a device.

    It is copied to an NVIDIA GPU from pinned memory, so that the host need not wait until the GPU
    has done what it was given before.
    """
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Return tensors of one device and type as arrays, with one transfer and one wait for all."""
    detached = [tensor.detach() for tensor in tensors]
    if all(tensor.device.type == "cpu" for tensor in detached):
        return [tensor.numpy() for tensor in detached]
    joined = torch.cat([tensor.flatten() for tensor in detached]).cpu()
    parts = joined.split([tensor.numel() for tensor in detached])
    return [part.reshape(t.shape).numpy() for part, t in zip(parts, detached, strict=True)]
