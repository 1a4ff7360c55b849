"""Render stored refinements again, or edits of them, without any optimisation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from pydantic import ValidationError

from dhr_batch.stages.context import Context
from dhr_batch.stages.edit import syntax
from dhr_batch.stages.edit.direction_files import DirectionError
from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.networks.transfers import to_device
from dhr_batch.stages.record import Record, required
from dhr_batch.stages.refine.base import Refinement, mask_of
from dhr_batch.stages.registry import InvalidInput
from dhr_batch.stages.tensors import tensor_to_images

EditChoice = str | tuple[str, float]


class Rerender:
    """Renders the same edits of any number of records.

    Args:
        context: Resources of the generator and of the refiner that the run used, and the rule of
            its edits (`Context.edit`).
        edits: The edits of each picture as a text (`syntax.parse`), or one edit as a pair of a
            direction (a shipped name or a file) and a strength. Without any, or with a strength of
            0, the refined picture is rendered.

    Raises:
        DirectionError: A direction is unknown, or the generator cannot use it.
        NotAnEdit: A text has another form.
    """

    def __init__(self, context: Context, edits: Iterable[EditChoice] = ()) -> None:
        self.context = context
        pictures = [syntax.parse(e) if isinstance(e, str) else (syntax.Term(*e),) for e in edits]
        rule = {name: context.edit[name] for name in ("rows", "follow") if name in context.edit}
        try:
            options = Directions.Options.model_validate({"edits": syntax.settings(pictures)} | rule)
        except ValidationError as error:
            found = error.errors()[0]
            cause = found.get("ctx", {}).get("error")
            raise cause if isinstance(cause, InvalidInput) else DirectionError(found["msg"]) from (
                error
            )
        self.directions = Directions(options)
        self.directions.setup(context)
        moves = self.directions.moves
        self.refined = not moves or any(
            move.unchanged or move.edit.turns(move.strength) for move in moves
        )

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
        refinement, masks = Refinement.of([record], device), mask_of(record, device)
        image = self.context.refiner().render(ws, refinement, masks)
        if not torch.isfinite(image).all():
            raise ArithmeticError("the refined image is not finite; try: dhr-batch verify")
        return tensor_to_images(image)[0]
