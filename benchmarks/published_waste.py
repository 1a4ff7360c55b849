"""The published DHR loop with the work that its code does and throws away.

The benchmark `refine-speed` compares the default with it (github.com/caopulan/GANInverter). Of its
waste, this has: the out-of-domain backward pass goes through the whole generator and computes the
gradients of all weights; everything before the feature layer is computed again when the weights are
frozen; the features of the photograph are computed again in every step. It has no waste outside the
steps (a generator loaded per image, superpixels one by one, renders that keep a graph), and the
networks are this project's, so that a comparison tells schedules and algorithms apart and not
kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dhr_batch.stages.base import Context
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.refine import Refinement, synthesis_weights, zero_delta
from dhr_batch.stages.refine_dhr import MaskedLoss
from dhr_batch.stages.refine_published import PublishedRefinement
from dhr_batch.stages.segment import DomainSpecific
from dhr_batch.stages.tensors import feature_mask


class RecomputedTargets(Perceptual):
    """A perceptual distance that computes the target's features again at every comparison.

    `features` returns the image itself, for `maps` and `distance` of this class.
    """

    def __init__(self, net: Perceptual) -> None:
        nn.Module.__init__(self)
        self.name, self.net = net.name, net

    def features(self, x: Tensor) -> list[Tensor]:
        return [x]

    def maps(self, x: Tensor, target_features: Sequence[Tensor]) -> list[Tensor]:
        return self.net.maps(x, self.net.features(target_features[0]))


class WastefulSegmentation(DomainSpecific):
    """`dhr` with the same masks; each step of its coarse inversion has the photograph's features
    computed again."""

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.perceptual = RecomputedTargets(self.perceptual)


class WastefulRefinement(PublishedRefinement):
    """`dhr-published` step by step as published: the same result, with the waste named above."""

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
