"""The two halves of hybrid refinement on their own, for comparison with `dhr`."""

from __future__ import annotations

import torch
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.embed.optimise import ramp
from dhr_batch.stages.options.refine import FeatureModulationOptions, WeightModulationOptions
from dhr_batch.stages.refine.base import LossRefiner, Refinement, Refiner, zero_delta
from dhr_batch.stages.refine.dhr import (
    HybridRefinement,
    MaskedLoss,
    adam_of,
    smallest,
    tuned_weights,
)


class WeightModulation(LossRefiner):
    """`weights`: weight modulation alone.

    Only the in-domain loss changes the weights. The out-of-domain part is whatever the changed
    generator renders from the code.
    """

    Options = WeightModulationOptions

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        options, generator = self.options, self.generator
        loss = MaskedLoss(options, self.perceptual, images, masks)
        names = tuned_weights(generator, smallest(options, generator))
        delta = zero_delta(generator, names, len(images))
        weights = [d.requires_grad_() for d in delta.values()]
        adam = adam_of(options, generator, delta)
        for step in self.counted(range(options.steps)):
            inner, _ = loss(generator.synthesize(ws, delta))
            rate = options.weight_rate * ramp(step, options.steps, 0.1, 0.25)
            adam.step(torch.autograd.grad(inner, weights), rate)
        return Refinement({name: value.detach() for name, value in delta.items()})


class FeatureModulation(Refiner):
    """`feature`: feature modulation alone, that is `dhr` without steps that change weights."""

    Options = FeatureModulationOptions

    def setup(self, context: Context) -> None:
        super().setup(context)
        settings = self.options.model_dump(exclude={"name"})
        self._dhr = HybridRefinement(HybridRefinement.Options(weight_share=0, **settings))
        self._dhr.setup(context)

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        return self._dhr.refine(images, ws, masks)
