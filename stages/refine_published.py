"""Domain-Specific Hybrid Refinement as its published code does it, without the code's waste.

Losses and steps are those of the published loop (github.com/caopulan/GANInverter); gradients that
it throws away and constants that it computes again are left out. `refine_dhr` is the default.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dhr_batch.stages.base import Context
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.refine import Refinement, Refiner, synthesis_weights, zero_delta
from dhr_batch.stages.refine_dhr import LossOptions, MaskedLoss
from dhr_batch.stages.tensors import feature_mask


class PublishedRefinement(Refiner):
    """`dhr-published`: two losses, two backward passes and plain Adam at constant rates.

    In each step both gradients come from one forward pass; the out-of-domain loss moves the
    feature, the in-domain loss all weights of the synthesis network, in the first steps only.
    Masks of one value, which made everything NaN there, give finite results.
    """

    class Options(LossOptions):
        name: str = "dhr-published"
        steps: int = Field(100, ge=0, description="steps of feature modulation")
        weight_share: float = Field(0.5, ge=0, le=1, description="share of steps that move weights")
        weight_rate: float = Field(1.5e-3, gt=0, description="Adam rate of the weights")
        feature_rate: float = Field(9e-2, gt=0, description="Adam rate of the feature")
        perceptual: str = "lpips_alex"
        perceptual_size: int = Field(1024, ge=32, description="features are compared at this size")
        perceptual_weight: float = Field(1.0, ge=0)
        pixel_weight: float = Field(1.0, ge=0, description="weight of 3x the mean squared error")
        layer_masks: Literal["nearest", "area"] = Field(
            "nearest", description="of the soft mask, at perceptual layers; area: of the hard mask"
        )

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.perceptual: Perceptual = context.network("perceptual", self.options.perceptual)

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        options, generator = self.options, self.generator
        weight_steps = round(options.steps * options.weight_share)
        names = synthesis_weights(generator) if weight_steps else []
        delta = zero_delta(generator, names, len(images))
        with torch.no_grad():
            feature = generator.to_feature(ws)
        soft = feature_mask(masks, (feature.shape[2], feature.shape[3]))
        at_layers = soft if options.layer_masks == "nearest" else None
        loss = MaskedLoss(options, self.perceptual, images, masks, at_layers)
        feature.requires_grad_()
        feature_adam = torch.optim.Adam([feature], lr=options.feature_rate)
        weights = [d.requires_grad_() for d in delta.values()]
        weight_adam = torch.optim.Adam(weights, lr=options.weight_rate) if weights else None

        for _ in range(weight_steps):
            assert weight_adam is not None
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
        for _ in range(options.steps - weight_steps):
            image = generator.from_feature(torch.lerp(feature, inside, soft), ws, delta, skip)
            _, outer = loss(image)
            (feature.grad,) = torch.autograd.grad(outer, [feature])
            feature_adam.step()
        return Refinement(delta, feature.detach())
