"""Render stored refinements again, or edits of them, without any optimisation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from dhr_batch.stages.base import Context, Record, required
from dhr_batch.stages.edit.directions import Directions, EditOptions
from dhr_batch.stages.networks.generator import Generator
from dhr_batch.stages.refine.base import Refinement, render
from dhr_batch.stages.tensors import masks_to_tensor, tensor_to_images


class Rerender:
    """Renders the same edits of any number of records.

    Args:
        context: Resources of the generator that the run used.
        edits: Pairs of a direction (a shipped name or a file) and a strength. Without any, or with
            a strength of 0, the refined picture is rendered.

    Raises:
        DirectionError: A direction is unknown, or the generator cannot use it.
    """

    def __init__(self, context: Context, edits: Iterable[tuple[str, float]] = ()) -> None:
        self.context = context
        self.generator: Generator = context.network("generator", context.generator)
        strengths: dict[str, dict[float, None]] = {}
        for direction, strength in edits:
            strengths.setdefault(direction, {})[strength] = None
        options = [EditOptions(direction=d, strengths=tuple(s)) for d, s in strengths.items()]
        self.refined = not options or any(0 in option.strengths for option in options)
        self.directions = Directions(Directions.Options(edits=tuple(options)))
        self.directions.setup(context)

    def __call__(self, record: Record) -> Record:
        """Return the record with `edits` and, if requested, `refined`; one forward pass each.

        Args:
            record: Needs `latent` and the results of the refinement: `delta`, `feature` and `mask`.

        Raises:
            ArithmeticError: A picture is not finite.
        """
        if self.refined:
            record = replace(record, refined=self._refined(record))
        return self.directions.process([record])[0]

    @torch.inference_mode()
    def _refined(self, record: Record) -> np.ndarray:
        def batch(array: np.ndarray) -> torch.Tensor:
            return torch.tensor(array).to(self.context.device).unsqueeze(0)

        delta = {name: batch(value) for name, value in (record.delta or {}).items()}
        feature = None if record.feature is None else batch(record.feature)
        mask = required(record.mask) if feature is not None else np.ones((1, 1), bool)
        masks = masks_to_tensor([mask], self.context.device)
        image = render(
            self.generator, batch(required(record.latent)), Refinement(delta, feature), masks
        )
        if not torch.isfinite(image).all():
            raise ArithmeticError("the refined image is not finite; try: dhr-batch verify")
        return tensor_to_images(image)[0]
