"""Refinement: adapt the generator to each image so that its code renders the photograph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.base import Context, Record, Stage, StageOptions, required
from dhr_batch.stages.networks.generator import Generator
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.tensors import (
    feature_mask,
    images_to_tensor,
    masks_to_tensor,
    tensor_to_images,
)


@dataclass(frozen=True)
class Refinement:
    """What refinement changes in the generator for B images.

    Attributes:
        delta: Offsets of weights, name -> [B, *shape].
        feature: Replacement of the feature layer where the mask is out-of-domain, [B, C, h, w], or
            None.
    """

    delta: dict[str, Tensor]
    feature: Tensor | None = None


class Refiner(Stage):
    """Base class of the family. A member implements `refine`; this class handles the records."""

    family = "refine"
    needs = frozenset({"image", "latent", "mask"})
    gives = frozenset({"delta", "feature", "refined"})

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.generator: Generator = context.network("generator", context.generator)

    @abstractmethod
    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        """Refine B images, each independently of the others.

        Args:
            images: Photographs, [B, 3, R, R] in [-1, 1].
            ws: Their W+ codes, [B, L, 512], which are not changed.
            masks: [B, 1, R, R], 1 where in-domain, else 0. All ones and all zeros are valid.
        """

    def process(self, records: Sequence[Record]) -> list[Record]:
        device = self.context.device
        images = images_to_tensor([required(r.image) for r in records], device)
        masks = masks_to_tensor([required(r.mask) for r in records], device)
        ws = torch.from_numpy(np.stack([required(r.latent) for r in records])).to(device)
        result = self.refine(images, ws, masks)
        with torch.no_grad():
            refined = render(self.generator, ws, result, masks)
        if not torch.isfinite(refined).all():
            raise ArithmeticError("the refinement diverged; smaller rates may help")
        delta = {name: value.detach().float().cpu().numpy() for name, value in result.delta.items()}
        feature = None if result.feature is None else result.feature.detach().float().cpu().numpy()
        return [
            replace(
                record,
                delta={name: value[i] for name, value in delta.items()},
                feature=None if feature is None else feature[i],
                refined=image,
            )
            for i, (record, image) in enumerate(
                zip(records, tensor_to_images(refined), strict=True)
            )
        ]


class LossRefiner(Refiner):
    """Base class of refiners whose loss compares the features of a perceptual network."""

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.perceptual: Perceptual = context.network("perceptual", self.options.perceptual)


def zero_delta(generator: Generator, names: Sequence[str], batch: int) -> dict[str, Tensor]:
    """Return offsets of 0 for the named weights of `batch` images, name -> [batch, *shape]."""
    weights = {name: generator.weight(name) for name in names}
    return {name: w.new_zeros(batch, *w.shape) for name, w in weights.items()}


def synthesis_weights(generator: Generator) -> list[str]:
    """Return the names of all weights that affect the image of a given code."""
    return [name for name in generator.weight_names() if not name.startswith("mapping.")]


def prepared(
    generator: Generator, names: Sequence[str], ws: Tensor, masks: Tensor
) -> tuple[dict[str, Tensor], list[Tensor], Tensor, Tensor]:
    """Return what hybrid refinement optimises, at its start values.

    Returns:
        Offsets of 0 for the weights `names`, as a dictionary and as a list; the feature layer of
        the codes `ws`, [B, C, h, w]; and the soft mask at that layer, [B, 1, h, w]. Offsets and
        feature require gradients.
    """
    delta = zero_delta(generator, names, len(ws))
    with torch.no_grad():
        feature = generator.to_feature(ws)
    soft = feature_mask(masks, (feature.shape[2], feature.shape[3]))
    return delta, [d.requires_grad_() for d in delta.values()], feature.requires_grad_(), soft


def render(generator: Generator, ws: Tensor, refinement: Refinement, masks: Tensor) -> Tensor:
    """Render W+ codes [B, L, 512] with the refined generator, [B, 3, R, R]."""
    feature = refinement.feature
    if feature is None:
        return generator.synthesize(ws, refinement.delta)
    mask = feature_mask(masks, (feature.shape[2], feature.shape[3]))
    return generator.synthesize(ws, refinement.delta, feature, mask)


class NoRefinement(Refiner):
    """`none`: keep the published generator, the baseline of every table."""

    class Options(StageOptions):
        name: str = "none"

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        return Refinement({})
