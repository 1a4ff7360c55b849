"""A refiner whose renders need more than weights and a feature, for tests of what is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from dhr_batch.stages.base import StageOptions
from dhr_batch.stages.refine.base import Refinement, Refiner


class Tint(Refiner):
    """Adds the mean difference to the photograph; an edit is darker or lighter than its code."""

    class Options(StageOptions):
        name: str = "dhr_batch.tests.stateful:Tint"

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        with torch.no_grad():
            difference = (images - self.generator.synthesize(ws)).mean((2, 3))
        # The stored numbers are the ones that are rendered.
        state = {"tint": difference.half(), "kept": masks[:, 0, :2, :2].to(torch.uint8)}
        return Refinement(state=state)

    def render(self, ws: Tensor, refinement: Refinement, masks: Tensor) -> Tensor:
        tint = refinement.state["tint"].float()
        return self.generator.synthesize(ws) + tint[:, :, None, None]

    def render_edit(self, ws, edited, refinement, masks, styles=None):
        moved = (edited - ws).mean((1, 2))
        return self.render(edited, refinement, masks) + 0.1 * moved[:, None, None, None]
