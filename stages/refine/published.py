"""Domain-Specific Hybrid Refinement as in its published code.

Losses and steps are those of the published loop (github.com/caopulan/GANInverter). Gradients that
it computes but does not use are left out, and constants are computed once. The default refiner is
`refine.dhr`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dhr_batch.stages.networks.generators.generator import replace_feature
from dhr_batch.stages.refine.base import LossRefiner, Refinement, prepared, synthesis_weights
from dhr_batch.stages.refine.dhr import LossOptions, MaskedLoss


class PublishedRefinement(LossRefiner):
    """`dhr-published`: two losses, two backward passes and plain Adam at constant rates.

    In each step both gradients come from one forward pass. The out-of-domain loss changes the
    feature. The in-domain loss changes all weights of the synthesis network, in the first steps
    only. Masks of a single value, with which the published code returns NaN, give finite results.
    """

    class Options(LossOptions):
        name: str = "dhr-published"
        steps: int = Field(100, ge=0, description="steps of feature modulation")
        weight_share: float = Field(
            0.5, ge=0, le=1, description="share of the steps that change weights"
        )
        weight_rate: float = Field(1.5e-3, gt=0, description="Adam learning rate of the weights")
        feature_rate: float = Field(9e-2, gt=0, description="Adam learning rate of the feature")
        perceptual: str = "lpips_alex"
        perceptual_size: int = Field(1024, ge=32, description="features are compared at this size")
        perceptual_weight: float = Field(1.0, ge=0, description="weight of perceptual distances")
        pixel_weight: float = Field(1.0, ge=0, description="weight of 3x the mean squared error")
        layer_masks: Literal["nearest", "area"] = Field(
            "nearest",
            description="mask at the perceptual layers: nearest cell of the soft mask, or mean of "
            "the hard mask over the area of a cell",
        )

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        options, generator = self.options, self.generator
        weight_steps = round(options.steps * options.weight_share)
        names = synthesis_weights(generator) if weight_steps else []
        delta, weights, feature, soft = prepared(generator, names, ws, masks)
        at_layers = soft if options.layer_masks == "nearest" else None
        loss = MaskedLoss(options, self.perceptual, images, masks, at_layers)
        replaced = replace_feature(feature, soft)
        feature_adam = torch.optim.Adam([feature], lr=options.feature_rate)
        weight_adam = torch.optim.Adam(weights, lr=options.weight_rate) if weights else None

        for _ in self.counted(range(weight_steps), total=options.steps):
            assert weight_adam is not None
            inside, skip = generator.trunk(ws, delta)
            image = generator.from_feature(replaced(inside), ws, delta, skip)
            inner, outer = loss(image)
            (feature.grad,) = torch.autograd.grad(outer, [feature], retain_graph=True)
            for weight, grad in zip(weights, torch.autograd.grad(inner, weights), strict=True):
                weight.grad = grad
            feature_adam.step()
            weight_adam.step()

        delta = {name: value.detach() for name, value in delta.items()}
        with torch.no_grad():
            inside, skip = generator.trunk(ws, delta)
        rest = range(options.steps - weight_steps)
        for _ in self.counted(rest, weight_steps, options.steps):
            image = generator.from_feature(replaced(inside), ws, delta, skip)
            _, outer = loss(image)
            (feature.grad,) = torch.autograd.grad(outer, [feature])
            feature_adam.step()
        return Refinement(delta, feature.detach())
