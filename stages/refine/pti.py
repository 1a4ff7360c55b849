"""Pivotal tuning: tune the whole synthesis network until the code renders the photograph.

Roich et al., "Pivotal Tuning for Latent-based Editing of Real Images" (arXiv 2106.05744), second
stage, without the locality regularisation, which the published code does not use by default. The
pivot is the code from the embedding. The mask is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dhr_batch.stages.options.refine import PivotalTuningOptions
from dhr_batch.stages.refine.base import LossRefiner, Refinement, synthesis_weights, zero_delta
from dhr_batch.stages.refine.rotated_adam import RotatedAdam, scales
from dhr_batch.stages.tensors import downsample


class PivotalTuning(LossRefiner):
    """`pti`: each image has its own copy of the weights and stops on its own.

    The loss is ``perceptual_weight d(y, x) + pixel_weight mse(y, x)``. An image whose perceptual
    distance d falls to `stop` keeps the weights of that step, however many steps the other images
    of its batch still need.
    """

    Options = PivotalTuningOptions

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        options, size = self.options, self.options.perceptual_size
        target = self.perceptual.features(downsample(images, size))
        delta = zero_delta(self.generator, synthesis_weights(self.generator), len(images))
        weights = [d.requires_grad_() for d in delta.values()]
        step = self._optimiser(delta)
        kept = {name: torch.zeros_like(value) for name, value in delta.items()}
        finished = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for done in self.counted(range(1, options.steps + 1)):
            render = self.generator.synthesize(ws, delta)
            distance = self.perceptual.distance(downsample(render, size), target)
            now = (distance <= options.stop) & ~finished
            _copy_where(now, delta, kept)
            finished = finished | now
            if done % _asked_every(images) == 0 and bool(finished.all()):
                break
            pixel = (render - images).square().mean((1, 2, 3))
            loss = options.perceptual_weight * distance + options.pixel_weight * pixel
            step(torch.autograd.grad(loss.sum(), weights))
        _copy_where(~finished, delta, kept)
        return Refinement(kept)

    def _optimiser(self, delta: dict[str, Tensor]) -> Callable[[Sequence[Tensor]], None]:
        """Return a function that takes the gradients of offsets of weights and does a step."""
        weights, rate = [*delta.values()], self.options.rate
        if self.options.rates == "relative":
            sizes = [scales(self.generator.weight(name)) for name in delta]
            own = RotatedAdam(weights, [None] * len(weights), sizes, betas=(0.9, 0.999))
            return lambda grads: own.step(grads, rate)
        adam = torch.optim.Adam(weights, lr=rate)

        def step(grads: Sequence[Tensor]) -> None:
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
            adam.step()

        return step


def _asked_every(images: Tensor) -> int:
    """Return the number of steps after which the host asks whether all images are finished.

    On a GPU it would wait for the device in each step, and the device then for the host.
    """
    return 1 if images.device.type == "cpu" else 10


@torch.no_grad()
def _copy_where(chosen: Tensor, source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copy the weights of the images for which `chosen`, bool [B], is true."""
    for name, value in target.items():
        image = chosen.reshape(-1, *[1] * (value.ndim - 1))
        torch.where(image, source[name], value, out=value)
