"""Domain-Specific Hybrid Refinement: weights in-domain, features out-of-domain.

Cao et al., "What Decreases Editing Capability? Domain-Specific Hybrid Refinement for Improved
GAN Inversion" (WACV 2024). In-domain parts are refined by modulating the weights theta of the
generator G, so that they stay editable; out-of-domain parts by replacing the feature layer, which
no edit changes. With the code w, the mask m and the feature F:

    minimise over theta, F:  L_in(G(w; theta, F), x; m) + L_out(G(w; theta, F), x; 1 - m)

`refine.published` is the published loop. docs/decisions/refinement.md says what differs here, and
why.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.embed.optimise import ramp
from dhr_batch.stages.networks.generators.generator import Generator, replace_feature
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.options.refine import (
    HybridRefinementOptions,
    LossOptions,
    RateOptions,
    WeightOptions,
)
from dhr_batch.stages.refine.base import LossRefiner, Refinement, prepared
from dhr_batch.stages.refine.rotated_adam import RotatedAdam, channels, rms, scales
from dhr_batch.stages.tensors import downsample


class HybridRefinement(LossRefiner):
    """`dhr`: both modulations from one backward pass per step, then the feature alone.

    The feature layer is ``M x(theta) + (1 - M) F`` with the soft mask M, so one gradient of the sum
    of both losses is nearly domain-specific: in-domain cells pass theirs to the weights before the
    layer, out-of-domain cells to F. The few weights behind the layer serve both parts. The
    separation is not exact. Convolutions behind the layer mix cells on both sides of the edge of
    the mask, and in StyleGAN2 the image summed up before the layer is not masked, so the
    out-of-domain loss reaches earlier weights through it. Once the weights are frozen, everything
    before the feature layer is constant and is computed only once.
    """

    Options = HybridRefinementOptions

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        options, generator = self.options, self.generator
        weight_steps = round(options.steps * options.weight_share)
        names = tuned_weights(generator, smallest(options, generator)) if weight_steps else []
        delta, weights, feature, soft = prepared(generator, names, ws, masks)
        loss = MaskedLoss(options, self.perceptual, images, masks)
        replaced = replace_feature(feature, soft)
        relative = options.rates == "relative"
        feature_adam = RotatedAdam([feature], [1], [rms(feature.detach())] if relative else None)
        weight_adam = adam_of(options, generator, delta)

        for step in self.counted(range(weight_steps), total=options.steps):
            inside, skip = generator.trunk(ws, delta)
            image = generator.from_feature(replaced(inside), ws, delta, skip)
            inner, outer = loss(image)
            grads = torch.autograd.grad(inner + outer, [feature, *weights])
            feature_adam.step(grads[:1], options.feature_rate * min(1.0, (step + 1) / 4))
            weight_adam.step(grads[1:], options.weight_rate * ramp(step, weight_steps, 0.1, 0.25))

        delta = {name: value.detach() for name, value in delta.items()}
        rest = options.steps - weight_steps
        if rest:
            with torch.no_grad():
                inside, skip = generator.trunk(ws, delta)
        for step in self.counted(range(rest), weight_steps, options.steps):
            image = generator.from_feature(replaced(inside), ws, delta, skip)
            _, outer = loss(image)
            grads = torch.autograd.grad(outer, [feature])
            feature_adam.step(grads, options.feature_rate * ramp(step, rest, 0, 0.6))
        return Refinement(delta, feature.detach())


def smallest(options: WeightOptions, generator: Generator) -> float:
    """Return the size in pixels below which layers keep their weights."""
    return options.smallest_layer * generator.feature_shape[1] / 64


def adam_of(options: RateOptions, generator: Generator, delta: Mapping[str, Tensor]) -> RotatedAdam:
    """Return the optimiser of offsets of weights, name -> [B, *shape]."""
    relative = options.rates == "relative"
    return RotatedAdam(
        [*delta.values()],
        [channels(value) for value in delta.values()],
        [scales(generator.weight(name)) for name in delta] if relative else None,
    )


def tuned_weights(generator: Generator, smallest_layer: float) -> list[str]:
    """Return the names of the weights that weight modulation changes.

    These are the kernels of convolutions and of the layers that output an image.

    Args:
        smallest_layer: Layers whose output is smaller than this, in pixels, keep their weights.
            They hold most of the weights but few of the details in which a photograph differs.
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
    """Return the side in pixels of the image that a head outputs, or None for the only head."""
    if head == "to_rgb1":
        return sizes["conv1"]
    name, _, block = head.partition(".")
    return sizes[f"convs.{2 * int(block) + 1}"] if name == "to_rgbs" else None


class MaskedLoss:
    """Perceptual plus pixel loss, separately for the in-domain and the out-of-domain part.

    For the render y of an image x, with ``<a>_m = sum(a m) / sum(m)`` over positions:

        L_in = perceptual_weight sum_l <map_l(y, x)>_m + pixel_weight <sum_c (y - x)^2>_m

    and L_out is the same with 1 - m. As in the published code, the squares are summed over the
    three channels, so the pixel term is 3x the mean squared error. Each map is averaged with the
    mask at its own size. A part without pixels has loss 0. Calling the object returns both losses,
    summed over the images of the batch, so that each image has its own gradient.

    Args:
        options: Weights of the terms.
        perceptual: The network whose error maps are averaged.
        images: The photographs x, [B, 3, R, R] in [-1, 1].
        masks: The in-domain masks m, [B, 1, R, R].
        at_layers: Masks to use for the perceptual maps instead, sampled at the nearest cell.
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
        # Both parts of each term, as weights and their sums. The masks do not change.
        self._parts: list[tuple[tuple[Tensor, Tensor], ...]] = []

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixel = (image - self.images).square().sum(1, keepdim=True) * self.options.pixel_weight
        maps = self.perceptual.maps(downsample(image, self.options.perceptual_size), self.target)
        terms = [pixel, *(m * self.options.perceptual_weight for m in maps)]
        if not self._parts:
            self._parts = [self._parts_of(term, i > 0) for i, term in enumerate(terms)]
        inner = outer = image.new_zeros(())
        for term, (inside, outside) in zip(terms, self._parts, strict=True):
            inner = inner + _part_mean(term, *inside).sum()
            outer = outer + _part_mean(term, *outside).sum()
        return inner, outer

    def _parts_of(self, term: Tensor, of_layer: bool) -> tuple[tuple[Tensor, Tensor], ...]:
        size = (term.shape[2], term.shape[3])
        if of_layer and self.at_layers is not None:
            mask = F.interpolate(self.at_layers, size)
        else:
            mask = F.adaptive_avg_pool2d(self.masks, size)
        return tuple((part, part.sum((1, 2, 3)).clamp_min(1e-6)) for part in (mask, 1 - mask))


def _part_mean(values: Tensor, weights: Tensor, total: Tensor) -> Tensor:
    """Return the mean of each image, [B], under weights with this sum; 0 where all are 0."""
    return (values * weights).sum((1, 2, 3)) / total
