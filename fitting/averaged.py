"""Adam with rates relative to each tensor, and a moving average of the weights; resumable."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# Steps over which the rate rises to its maximum.
WARM_UP = 100


class AveragedAdam:
    """Trains tensors with a warm-up and a cosine decay of the rate.

    Args:
        tensors: The tensors in training by name. They are changed in place.
        scales: The scale of each tensor, by which its rate is multiplied.
        rate: The maximum of the rate, relative to the scales.
        fused: Whether Adam uses its fused kernels.

    Attributes:
        average: The moving average of the tensors.
        seconds: The time spent so far, which the caller counts.
        steps: The number of steps so far.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        scales: Mapping[str, float],
        rate: float,
        fused: bool = False,
    ) -> None:
        self.tensors, self.rate = tensors, rate
        self.average = {name: t.detach().clone() for name, t in tensors.items()}
        groups = [
            {"params": [tensor.requires_grad_()], "lr": 0.0, "scale": scales[name]}
            for name, tensor in tensors.items()
        ]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=fused or None)
        self.seconds, self.steps = 0.0, 0

    def state(self) -> dict[str, object]:
        """Return everything that is needed to resume the training."""
        return {
            "tensors": {name: t.detach() for name, t in self.tensors.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
            "steps": self.steps,
        }

    @torch.no_grad()
    def restore(self, state: dict) -> None:
        """Resume the training from a result of `state`."""
        for name, tensor in self.tensors.items():
            tensor.copy_(state["tensors"][name])
            self.average[name].copy_(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seconds, self.steps = state["seconds"], state["steps"]

    def update(self, progress: float) -> None:
        """Make a step along the gradients of the tensors.

        Args:
            progress: Share of the training that is done, 0..1, which sets the rate.
        """
        warm = min(1.0, (self.steps + 1) / WARM_UP)
        rate = self.rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self.steps += 1
        decay = min(0.998, self.steps / (self.steps + 10))
        with torch.no_grad():
            self.constrain()
            for name, tensor in self.tensors.items():
                self.average[name].lerp_(tensor, 1 - decay)

    def constrain(self) -> None:
        """Bring the tensors back to where they may be after a step. Does nothing by default."""
