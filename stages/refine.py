"""Refinement: change the generator, per image, so that it renders the source; the code stays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.base import Context, Record, Stage, StageOptions, required
from dhr_batch.stages.networks.generator import Generator
from dhr_batch.stages.tensors import (
    feature_mask,
    images_to_tensor,
    masks_to_tensor,
    tensor_to_images,
)


@dataclass(frozen=True)
class Refinement:
    """What refinement adds to the generator for B images.

    delta: weight name -> offset [B, *shape]. feature: [B, C, h, w] in place of the feature layer
    where the mask is out-of-domain, or None.
    """

    delta: dict[str, Tensor]
    feature: Tensor | None = None


class Refiner(Stage):
    """Base of the family. A member implements `refine`; this class handles the records."""

    family = "refine"
    needs = frozenset({"image", "latent", "mask"})
    gives = frozenset({"delta", "feature", "refined"})

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.generator: Generator = context.network("generator", context.generator)

    @abstractmethod
    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        """Refine B images independently of each other.

        images: [B, 3, R, R] in [-1, 1]. ws: W+ codes [B, L, 512], never changed.
        masks: [B, 1, R, R], 1 = in-domain; all ones and all zeros are legal.
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
            raise ArithmeticError("refinement diverged to non-finite values")
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


def zero_delta(generator: Generator, names: Sequence[str], batch: int) -> dict[str, Tensor]:
    """Offsets of 0 for the named weights of each of `batch` images: name -> [batch, *shape]."""
    weights = {name: generator.weight(name) for name in names}
    return {name: w.new_zeros(batch, *w.shape) for name, w in weights.items()}


def synthesis_weights(generator: Generator) -> list[str]:
    """Names of all weights that reach the image of a given code."""
    return [name for name in generator.weight_names() if not name.startswith("mapping.")]


def render(generator: Generator, ws: Tensor, refinement: Refinement, masks: Tensor) -> Tensor:
    """Render W+ codes [B, L, 512] with the refined generator -> [B, 3, R, R]."""
    feature = refinement.feature
    if feature is None:
        return generator.synthesize(ws, refinement.delta)
    mask = feature_mask(masks, (feature.shape[2], feature.shape[3]))
    return generator.synthesize(ws, refinement.delta, feature, mask)


class NoRefinement(Refiner):
    """`none`: the published generator as it is, the baseline of every table."""

    class Options(StageOptions):
        name: str = "none"

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        return Refinement({})
