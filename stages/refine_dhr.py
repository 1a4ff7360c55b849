"""Domain-Specific Hybrid Refinement: weights in-domain, features out-of-domain (WACV 2024).

Cao et al., "What Decreases Editing Capability? Domain-Specific Hybrid Refinement for Improved
GAN Inversion". In-domain parts are refined by modulating the generator's weights, so that they
stay editable; out-of-domain parts by replacing the feature layer, which no edit moves.

The published loop is `refine_published`; what is different here, and why, is in
docs/decisions.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dhr_batch.stages.base import Context, StageOptions
from dhr_batch.stages.embed import ramp
from dhr_batch.stages.networks.generator import Generator
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.refine import Refinement, Refiner, zero_delta
from dhr_batch.stages.rotated_adam import RotatedAdam, channels
from dhr_batch.stages.tensors import downsample, feature_mask

# Layers below this, in px, keep their weights.
SMALLEST_LAYER = 16


class LossOptions(StageOptions):
    """Settings of `MaskedLoss`."""

    perceptual: str = "st_lpips_alex"
    perceptual_size: int = Field(256, ge=32, description="features are compared at this size")
    perceptual_weight: float = Field(1.3, ge=0)
    pixel_weight: float = Field(10.0, ge=0, description="weight of 3x the mean squared error")


class WeightOptions(LossOptions):
    """Settings of weight modulation."""

    weight_rate: float = Field(5e-4, gt=0, description="step of a weight, at most")
    smallest_layer: int = Field(
        SMALLEST_LAYER,
        ge=4,
        description="layers below this size in px keep their weights",
    )


class HybridRefinement(Refiner):
    """`dhr`: both modulations from one backward pass per step, then the features alone.

    The feature layer is ``x = M x(theta) + (1 - M) F``, so that one gradient of the sum of both
    losses is nearly domain-specific by itself: in-domain cells pass theirs on to the weights before
    the layer, out-of-domain cells to F. The few weights behind it serve both parts. It is not
    exact: convolutions behind the layer mix cells on both sides of the mask's edge, and on
    StyleGAN2 the image summed up before the layer is not masked, so that the out-of-domain loss
    reaches earlier weights through it. Once the weights are frozen, everything before the feature
    layer is constant and computed once.
    """

    class Options(WeightOptions):
        name: str = "dhr"
        steps: int = Field(38, ge=0, description="optimisation steps")
        weight_share: float = Field(0.8, ge=0, le=1, description="share of steps that move weights")
        feature_rate: float = Field(0.06, gt=0, description="step of a feature, at most")

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.perceptual: Perceptual = context.network("perceptual", self.options.perceptual)

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        options, generator = self.options, self.generator
        weight_steps = round(options.steps * options.weight_share)
        names = tuned_weights(generator, options.smallest_layer) if weight_steps else []
        delta = zero_delta(generator, names, len(images))
        with torch.no_grad():
            feature = generator.to_feature(ws)
        soft = feature_mask(masks, (feature.shape[2], feature.shape[3]))
        loss = MaskedLoss(options, self.perceptual, images, masks)
        feature.requires_grad_()
        weights = [d.requires_grad_() for d in delta.values()]
        feature_adam = RotatedAdam([feature], [1])
        weight_adam = RotatedAdam(weights, [channels(w) for w in weights])

        for step in range(weight_steps):
            inside, skip = generator.trunk(ws, delta)
            image = generator.from_feature(torch.lerp(feature, inside, soft), ws, delta, skip)
            inner, outer = loss(image)
            grads = torch.autograd.grad(inner + outer, [feature, *weights])
            feature_adam.step(grads[:1], options.feature_rate * min(1.0, (step + 1) / 4))
            weight_adam.step(grads[1:], options.weight_rate * ramp(step, weight_steps, 0.1, 0.25))

        delta = {name: value.detach() for name, value in delta.items()}
        rest = options.steps - weight_steps
        if rest:
            with torch.no_grad():
                inside, skip = generator.trunk(ws, delta)
        for step in range(rest):
            image = generator.from_feature(torch.lerp(feature, inside, soft), ws, delta, skip)
            _, outer = loss(image)
            grads = torch.autograd.grad(outer, [feature])
            feature_adam.step(grads, options.feature_rate * ramp(step, rest, 0, 0.6))
        return Refinement(delta, feature.detach())


def tuned_weights(generator: Generator, smallest_layer: int) -> list[str]:
    """Names of the weights that weight modulation moves: kernels of convolutions and image heads.

    smallest_layer: layers and heads whose output is smaller than this, in px, are left alone. They
    hold most of the weights and little of what a photograph differs in.
    """
    sizes = {name: generator.noise(name).shape[-1] for name in generator.noise_names}
    found = []
    for name in generator.weight_names():
        layer, _, kind = name.rpartition(".")
        if kind not in ("weight", "weight_dw") or layer.endswith(".modulation"):
            continue
        if layer.startswith("to_"):
            size = _head_size(layer, sizes)
        elif layer in sizes:
            size = sizes[layer]
        else:
            continue
        if size is None or size >= smallest_layer:
            found.append(name)
    return found


def _head_size(head: str, sizes: dict[str, int]) -> int | None:
    """Side in px of what an image head makes; None for a generator's only one, which makes all."""
    if head == "to_rgb1":
        return sizes["conv1"]
    name, _, block = head.partition(".")
    return sizes[f"convs.{2 * int(block) + 1}"] if name == "to_rgbs" else None


class MaskedLoss:
    """Perceptual plus pixel loss, separately over the in-domain and the out-of-domain part.

    Perceptual maps are averaged with the mask at their size, pixels with the hard mask; the
    published code's denominator makes the pixel term 3x the mean squared error. A part without
    pixels has loss 0. Summed over images, so each has its own gradient. at_layers: another mask
    for the perceptual maps, taken at the nearest cell.
    """

    def __init__(
        self,
        options: LossOptions,
        perceptual: Perceptual,
        images: Tensor,
        masks: Tensor,
        at_layers: Tensor | None = None,
    ) -> None:
        self.options, self.perceptual = options, perceptual
        self.images, self.masks, self.at_layers = images, masks, at_layers
        self.target = self.perceptual.features(downsample(images, self.options.perceptual_size))

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixel = (image - self.images).square().sum(1, keepdim=True) * self.options.pixel_weight
        terms = self.perceptual.maps(downsample(image, self.options.perceptual_size), self.target)
        inner = outer = image.new_zeros(())
        for term in [pixel, *(t * self.options.perceptual_weight for t in terms)]:
            size = (term.shape[2], term.shape[3])
            if term is pixel or self.at_layers is None:
                mask = F.adaptive_avg_pool2d(self.masks, size)
            else:
                mask = F.interpolate(self.at_layers, size)
            inner = inner + _part_mean(term, mask).sum()
            outer = outer + _part_mean(term, 1 - mask).sum()
        return inner, outer


def _part_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean per image [B]; 0 where the weights are 0 everywhere."""
    total = weights.sum((1, 2, 3))
    return (values * weights).sum((1, 2, 3)) / total.clamp_min(1e-6)
