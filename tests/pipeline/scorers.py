"""A scorer and a refiner of the tests' own, for benchmarks without models."""

from __future__ import annotations

import torch
from torch import Tensor

from dhr_batch.stages.base import StageOptions
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.refine.base import Refinement, Refiner


class Darkness:
    """The darkness of a picture, which the edits of the random generator increase a little."""

    label = "darkness"
    names = ("darkness",)

    def __init__(self, context: object) -> None:
        pass

    def score(self, portrait) -> dict[str, float]:
        return {"darkness": 1 - float(portrait.rgb.mean()) / 255}


class FailsOnDark(Refiner):
    """Refines nothing, and fails for dark pictures."""

    class Options(StageOptions):
        name: str = "dhr_batch.tests.pipeline.scorers:FailsOnDark"

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        if (images.mean((1, 2, 3)) < torch.tensor(-0.6)).any():
            raise ImageError("dark", "too dark")
        return Refinement({})
