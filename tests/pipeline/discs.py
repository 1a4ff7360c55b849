"""A parser that finds a disc as face, so that synthetic pictures need no trained networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX


class Disc:
    """Finds the same face in every picture, except at every `blind`-th call."""

    def __init__(self, blind: int = 3) -> None:
        self.asked, self.blind = 0, blind

    def parse(self, image: np.ndarray) -> np.ndarray | None:
        self.asked += 1
        if self.asked % self.blind == 0:
            return None
        y, x = np.mgrid[: image.shape[0], : image.shape[1]] / image.shape[0] - 0.5
        face = x**2 + y**2 < 0.1
        probs = np.zeros((len(CLASSES), *face.shape), np.float32)
        probs[INDEX["face"]], probs[INDEX["background"]] = face, ~face
        return probs


def context(parser: Disc | None = None) -> Context:
    made = Context("cpu", "tiny", models=lambda name: Path(), aligned=True)
    made._networks["parser", "landmarks"] = parser or Disc(blind=10**6)
    return made
