"""Domain-Specific Hybrid Refinement: weights in-domain, features out-of-domain (WACV 2024).

Cao et al., "What Decreases Editing Capability? Domain-Specific Hybrid Refinement for Improved
GAN Inversion". In-domain parts are refined by modulating the generator's weights, so that they
stay editable; out-of-domain parts by replacing the feature layer, which no edit moves.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dhr_batch.stages.base import Context, StageOptions
from dhr_batch.stages.embed import ramp
from dhr_batch.stages.networks.generator import Generator
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.refine import Refinement, Refiner, synthesis_weights, zero_delta
from dhr_batch.stages.tensors import downsample, feature_mask


class LossOptions(StageOptions):
    """Settings of `MaskedLoss`."""

    perceptual: str = "st_lpips_alex"
    perceptual_size: int = Field(256, ge=32, description="features are compared at this size")
    perceptual_weight: float = Field(1.0, ge=0)
    pixel_weight: float = Field(10.0, ge=0, description="weight of 3x the mean squared error")


class WeightOptions(LossOptions):
    """Settings of weight modulation."""

    weight_rate: float = Field(3e-4, gt=0, description="Adam rate of the weights")
    weights: Literal["all", "convolutions"] = "convolutions"


class HybridRefinement(Refiner):
    """`dhr`: both modulations from one forward pass per step, then the features alone.

    The in-domain loss moves only the weights and the out-of-domain loss only the feature. Once
    the weights are frozen, everything before the feature layer is constant and computed once.
    """

    class Options(WeightOptions):
        name: str = "dhr"
        steps: int = Field(50, ge=0, description="steps of feature modulation")
        weight_share: float = Field(0.6, ge=0, le=1, description="share of steps that move weights")
        feature_rate: float = Field(0.1, gt=0, description="Adam rate of the feature")
        schedule: Literal["ramp", "constant"] = Field(
            "ramp", description="of both rates: warm-up and decay, or as published: none"
        )
        layer_masks: Literal["area", "nearest"] = Field(
            "area", description="mask at a perceptual layer; published: nearest of the soft mask"
        )

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.perceptual: Perceptual = context.network("perceptual", self.options.perceptual)

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        options, generator, batch = self.options, self.generator, len(images)
        delta = zero_delta(generator, weight_names(generator, options.weights), batch)
        with torch.no_grad():
            feature = generator.to_feature(ws)
        soft = feature_mask(masks, (feature.shape[2], feature.shape[3]))
        at_layers = soft if options.layer_masks == "nearest" else None
        loss = MaskedLoss(options, self.perceptual, images, masks, at_layers)
        feature.requires_grad_()
        feature_adam = torch.optim.Adam([feature], lr=options.feature_rate)
        weight_steps = round(options.steps * options.weight_share)
        weights = [d.requires_grad_() for d in delta.values()] if weight_steps else []
        weight_adam = torch.optim.Adam(weights, lr=options.weight_rate) if weights else None

        for step in range(weight_steps):
            assert weight_adam is not None
            if options.schedule == "ramp":
                set_rate(feature_adam, options.feature_rate * min(1.0, (step + 1) / 4))
                set_rate(weight_adam, options.weight_rate * ramp(step, weight_steps, 0.1, 0.6))
            inside, skip = generator.trunk(ws, delta)
            image = generator.from_feature(torch.lerp(feature, inside, soft), ws, delta, skip)
            inner, outer = loss(image)
            (feature.grad,) = torch.autograd.grad(outer, [feature], retain_graph=True)
            for weight, grad in zip(weights, torch.autograd.grad(inner, weights), strict=True):
                weight.grad = grad
            feature_adam.step()
            weight_adam.step()

        delta = {name: value.detach() for name, value in delta.items()}
        with torch.no_grad():
            inside, skip = generator.trunk(ws, delta)
        rest = options.steps - weight_steps
        for step in range(rest):
            if options.schedule == "ramp":
                set_rate(feature_adam, options.feature_rate * ramp(step, rest, 0, 0.6))
            image = generator.from_feature(torch.lerp(feature, inside, soft), ws, delta, skip)
            _, outer = loss(image)
            (feature.grad,) = torch.autograd.grad(outer, [feature])
            feature_adam.step()
        return Refinement(delta if weight_steps else {}, feature.detach())


def weight_names(generator: Generator, weights: Literal["all", "convolutions"]) -> list[str]:
    """Names of the weights that weight modulation moves."""
    names = synthesis_weights(generator)
    if weights == "all":
        return names
    return [n for n in names if n.endswith((".weight", ".weight_dw")) and "modul" not in n]


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


def set_rate(adam: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter."""
    for group in adam.param_groups:
        group["lr"] = rate
