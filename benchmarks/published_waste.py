"""The published DHR loop, including the superfluous work of its code.

The benchmark `refine-speed` compares the default refinement with it (see
github.com/caopulan/GANInverter). Of the superfluous work of the published code, it has the
following: the out-of-domain backward pass goes through the whole generator and computes the
gradients of all weights; everything before the feature layer is computed again even if the weights
are frozen; the features of the photograph are computed again in every step. It does not have the
superfluous work outside of the steps, such as loading the generator for each image. The networks
are those of this project, so that schedules and algorithms are compared, not kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.refine.base import Refinement, synthesis_weights, zero_delta
from dhr_batch.stages.refine.dhr import MaskedLoss
from dhr_batch.stages.refine.published import PublishedRefinement
from dhr_batch.stages.segment import DomainSpecific
from dhr_batch.stages.tensors import feature_mask


class RecomputedTargets(Perceptual):
    """A perceptual distance that computes the features of the target again in every comparison.

    `features` returns the image itself, from which `maps` computes the features.
    """

    def __init__(self, net: Perceptual) -> None:
        nn.Module.__init__(self)
        self.name, self.net = net.name, net

    def features(self, x: Tensor) -> list[Tensor]:
        return [x]

    def maps(self, x: Tensor, target_features: Sequence[Tensor]) -> list[Tensor]:
        return self.net.maps(x, self.net.features(target_features[0]))


class WastefulSegmentation(DomainSpecific):
    """The segmentation `dhr`, which computes the features of the photograph again in each step."""

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.perceptual = RecomputedTargets(self.perceptual)


class WastefulRefinement(PublishedRefinement):
    """The refinement `dhr-published` with the superfluous work named above and the same results."""

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.perceptual = RecomputedTargets(self.perceptual)

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        options, generator = self.options, self.generator
        weight_steps = round(options.steps * options.weight_share)
        delta = zero_delta(generator, synthesis_weights(generator), len(images))
        with torch.no_grad():
            feature = generator.to_feature(ws)
        soft = feature_mask(masks, (feature.shape[2], feature.shape[3]))
        at_layers = soft if options.layer_masks == "nearest" else None
        loss = MaskedLoss(options, self.perceptual, images, masks, at_layers)
        feature.requires_grad_()
        weights = [d.requires_grad_() for d in delta.values()]
        feature_adam = torch.optim.Adam([feature], lr=options.feature_rate)
        weight_adam = torch.optim.Adam(weights, lr=options.weight_rate)

        for step in range(options.steps):
            inside, skip = generator.trunk(ws, delta)
            image = generator.from_feature(torch.lerp(feature, inside, soft), ws, delta, skip)
            inner, outer = loss(image)
            feature_adam.zero_grad()
            outer.backward(retain_graph=step < weight_steps)
            feature_adam.step()
            weight_adam.zero_grad()
            if step < weight_steps:
                inner.backward()
                weight_adam.step()
        return Refinement({n: d.detach() for n, d in delta.items()}, feature.detach())
