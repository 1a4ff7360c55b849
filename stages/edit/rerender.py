"""Render stored refinements again, or edits of them, without any optimisation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from dhr_batch.stages.base import Context, Record, required
from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.networks.transfers import to_device
from dhr_batch.stages.refine.base import Refinement, mask_of
from dhr_batch.stages.tensors import tensor_to_images


class Rerender:
    """Renders the same edits of any number of records.

    Args:
        context: Resources of the generator and of the refiner that the run used, and the rule of
            its edits (`Context.edit`).
        edits: Pairs of a direction (a shipped name or a file) and a strength. Without any, or with
            a strength of 0, the refined picture is rendered.

    Raises:
        DirectionError: A direction is unknown, or the generator cannot use it.
    """

    def __init__(self, context: Context, edits: Iterable[tuple[str, float]] = ()) -> None:
        self.context = context
        strengths: dict[str, dict[float, None]] = {}
        for direction, strength in edits:
            strengths.setdefault(direction, {})[strength] = None
        chosen = [{"direction": d, "strengths": list(s)} for d, s in strengths.items()]
        rule = {name: context.edit[name] for name in ("rows", "follow") if name in context.edit}
        self.directions = Directions(Directions.Options.model_validate({"edits": chosen} | rule))
        self.directions.setup(context)
        moves = self.directions.moves
        self.refined = not moves or any(move.unchanged for move in moves)

    def __call__(self, record: Record) -> Record:
        """Return the record with `edits` and, if requested, `refined`.

        Args:
            record: Needs `latent` and the results of the refinement: `delta`, `feature`, `state`
                and `mask`.

        Raises:
            ArithmeticError: A picture is not finite.
        """
        if self.refined:
            record = replace(record, refined=self._refined(record))
        return self.directions.process([record])[0]

    @torch.inference_mode()
    def _refined(self, record: Record) -> np.ndarray:
        device = self.context.device
        ws = to_device(torch.tensor(required(record.latent)), device).unsqueeze(0)
        refinement, masks = Refinement.of(record, device), mask_of(record, device)
        image = self.context.refiner().render(ws, refinement, masks)
        if not torch.isfinite(image).all():
            raise ArithmeticError("the refined image is not finite; try: dhr-batch verify")
        return tensor_to_images(image)[0]
