"""Domain-Specific Hybrid Refinement as in its published code.

Losses and steps are those of the published loop (github.com/caopulan/GANInverter). Gradients that
it computes but does not use are left out, and constants are computed once. The default refiner is
`refine.dhr`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dhr_batch.stages.networks.generators.generator import replace_feature
from dhr_batch.stages.options.refine import PublishedRefinementOptions
from dhr_batch.stages.refine.base import LossRefiner, Refinement, prepared, synthesis_weights
from dhr_batch.stages.refine.dhr import MaskedLoss


class PublishedRefinement(LossRefiner):
    """`dhr-published`: two losses, two backward passes and plain Adam at constant rates.

    In each step both gradients come from one forward pass. The out-of-domain loss changes the
    feature. The in-domain loss changes all weights of the synthesis network, in the first steps
    only. Masks of a single value, with which the published code returns NaN, give finite results.
    """

    Options = PublishedRefinementOptions

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
