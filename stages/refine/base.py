"""Refinement: adapt the generator to each image so that its code renders the photograph."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.base import Stage
from dhr_batch.stages.context import Context
from dhr_batch.stages.device import full_precision, mixed_precision
from dhr_batch.stages.networks.generators.generator import Generator, replace_feature
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.networks.transfers import to_device, to_host
from dhr_batch.stages.options.refine import NoRefinementOptions
from dhr_batch.stages.record import Record, required
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
        delta: Offsets of weights, name -> [B, *shape]. They are stored with a loss (`codec`).
        feature: Replacement of the feature layer where the mask is out-of-domain, [B, C, h, w], or
            None. It is stored with a loss as well.
        state: Further arrays that the refiner needs to render, name -> [B, ...]. They are stored
            exactly, with their type.
    """

    delta: dict[str, Tensor] = field(default_factory=dict)
    feature: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Sequence[Record], device: str) -> Refinement:
        """Return the refinement of B records of one refiner."""

        def batch(arrays: Iterable[np.ndarray | None]) -> Tensor:
            return to_device(torch.from_numpy(np.stack([required(a) for a in arrays])), device)

        first = records[0]
        return cls(
            {name: batch((r.delta or {}).get(name) for r in records) for name in first.delta or {}},
            None if first.feature is None else batch(r.feature for r in records),
            {name: batch((r.state or {}).get(name) for r in records) for name in first.state or {}},
        )

    def expand(self, count: int) -> Refinement:
        """Return the refinement of one image for `count` renders of it, without copies."""

        def many(tensor: Tensor) -> Tensor:
            return tensor.expand(count, *tensor.shape[1:])

        return Refinement(
            {name: many(value) for name, value in self.delta.items()},
            None if self.feature is None else many(self.feature),
            {name: many(value) for name, value in self.state.items()},
        )


class Refiner(Stage):
    """Base class of the family, which handles the records.

    A member implements `refine`. It overrides `render` and `render_edit` if its refinement is more
    than offsets of weights and a feature, and `setup_render` if these need other networks than the
    generator.
    """

    family = "refine"
    needs = frozenset({"image", "latent", "mask"})
    gives = frozenset({"delta", "feature", "state", "refined"})

    def setup(self, context: Context) -> None:
        self.setup_render(context)

    def setup_render(self, context: Context) -> None:
        """Load what `render` and `render_edit` need. Optimisation may need more (`setup`)."""
        super().setup(context)
        self.generator: Generator = context.network("generator", context.generator)

    def render_models(self) -> set[str]:
        """Return the models that `setup_render` loads besides those of the generator."""
        return set()

    @abstractmethod
    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        """Refine B images, each independently of the others.

        Args:
            images: Photographs, [B, 3, R, R] in [-1, 1].
            ws: Their W+ codes, [B, L, 512], which are not changed.
            masks: [B, 1, R, R], 1 where in-domain, else 0. All ones and all zeros are valid.
        """

    def refined_codes(self, ws: Tensor, refinement: Refinement) -> Tensor:
        """Return the codes [B, L, 512] of the refined pictures, from which edits start.

        These are the codes `ws` of the embedding, unless the refinement moves them.
        """
        return ws

    def render(self, ws: Tensor, refinement: Refinement, masks: Tensor) -> Tensor:
        """Render the refined pictures, [B, 3, R, R] in about [-1, 1].

        Args:
            ws: The codes of the embedding, [B, L, 512].
            refinement: What `refine` returned for them, possibly restored from tables.
            masks: As in `refine`.
        """
        return render(self.generator, ws, self.unpacked(refinement), masks)

    def unpacked(self, refinement: Refinement) -> Refinement:
        """Return the offsets of weights and the feature that a stored refinement stands for.

        It is computed once for all edits of an image. An unpacked refinement is returned unchanged.
        """
        return refinement

    def render_edit(
        self,
        ws: Tensor,
        edited: Tensor,
        refinement: Refinement,
        masks: Tensor,
        styles: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Render edits of one image with its refinement, [N, 3, R, R].

        Without other rules, weights, feature and mask of the refinement do not change, so
        out-of-domain content stays in place.

        Args:
            ws: The code of the embedding, [1, L, 512].
            edited: The codes to render, [N, L, 512]: edits of `refined_codes`.
            refinement: What `refine` returned for `ws`, with B = 1.
            masks: The mask of the image, [1, 1, R, R].
            styles: Offsets of styles that belong to the edits, `LAYER.style` -> [N, C].
        """
        shared = self.unpacked(refinement).expand(len(edited))
        moved = replace(shared, delta=shared.delta | (styles or {}))
        return self.render(edited, moved, masks.expand(len(edited), -1, -1, -1))

    def process(self, records: Sequence[Record]) -> list[Record]:
        device = self.context.device
        images = images_to_tensor([required(r.image) for r in records], device)
        masks = masks_to_tensor([required(r.mask) for r in records], device)
        ws = to_device(torch.from_numpy(np.stack([required(r.latent) for r in records])), device)
        with mixed_precision(self.context.device, self.context.precision):
            result = self.refine(images, ws, masks)
        changed = [*result.delta.values(), *([] if result.feature is None else [result.feature])]
        arrays = to_host([value.float() for value in changed])
        delta = dict(zip(result.delta, arrays, strict=False))
        feature = None if result.feature is None else arrays[-1]
        state = {name: value.detach().cpu().numpy() for name, value in result.state.items()}
        # The render below has its own copy on the device.
        del result, changed
        made = [
            self.context.stored(
                replace(
                    record,
                    delta={name: value[i] for name, value in delta.items()},
                    feature=None if feature is None else feature[i],
                    state={name: value[i] for name, value in state.items()},
                )
            )
            for i, record in enumerate(records)
        ]
        with torch.no_grad():
            refined = self.render(ws, Refinement.of(made, device), masks)
        if not torch.isfinite(refined).all():
            raise ArithmeticError("the refinement diverged; smaller rates may help")
        pictures = tensor_to_images(refined)
        return [replace(r, refined=image) for r, image in zip(made, pictures, strict=True)]


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
    with torch.no_grad(), full_precision(ws):
        feature = generator.to_feature(ws)
    soft = feature_mask(masks, (feature.shape[2], feature.shape[3]))
    return delta, [d.requires_grad_() for d in delta.values()], feature.requires_grad_(), soft


def mask_of(record: Record, device: str) -> Tensor:
    """Return the mask of a record, [1, 1, R, R]. If it has none, everything is in-domain."""
    return masks_to_tensor([np.ones((1, 1), bool) if record.mask is None else record.mask], device)


def render(generator: Generator, ws: Tensor, refinement: Refinement, masks: Tensor) -> Tensor:
    """Render W+ codes [B, L, 512] with the refined generator, [B, 3, R, R]."""
    feature = refinement.feature
    if feature is None:
        return generator.synthesize(ws, refinement.delta)
    mask = feature_mask(masks, (feature.shape[2], feature.shape[3]))
    return generator.synthesize(
        ws, refinement.delta, {generator.feature_place: replace_feature(feature, mask)}
    )


class NoRefinement(Refiner):
    """`none`: keep the published generator, the baseline of every table."""

    Options = NoRefinementOptions

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        return Refinement({})
