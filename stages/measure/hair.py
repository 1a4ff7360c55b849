"""Scores of the hair of a face, from a parse of the picture and its colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from dhr_batch.stages.networks.parsers.face_parts import INDEX
from dhr_batch.stages.networks.parsers.landmarks import parse_face
from dhr_batch.stages.networks.parsers.soft_masks import WORK_SIZE

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.networks.faces.identity import Portrait

# Pixels of a class below which nothing is said about it.
_FEWEST = 100
# Eyes, tip of the nose's base, and chin among the 68 landmarks.
_RIGHT, _LEFT, _NOSE, _CHIN = slice(36, 42), slice(42, 48), 33, 8


class Hair:
    """`hair`: brightness and length of the hair, and stubble, from pixels.

    - ``hair_brightness``: mean lightness L* of the hair, 0 to 100.
    - ``hair_length``: area of the hair below the eyes, in squares of the distance of the eyes.
    - ``stubble``: by how much the skin below the nose is darker than that between eyes and nose, as
      difference of their median lightness L*. Shade counts as well, so compare it within one face.

    The picture is parsed by the landmarks and by colour (`networks.parsers.landmarks`), whichever
    parser a run uses.
    """

    label = "hair (landmarks parser)"
    names = ("hair_brightness", "hair_length", "stubble")

    def __init__(self, context: Context) -> None:
        pass

    def score(self, portrait: Portrait) -> dict[str, float] | None:
        """See `Scorer`. Scores of a class that hardly shows are left out."""
        if portrait.landmarks is None:
            return None
        size = (WORK_SIZE, WORK_SIZE)
        picture = cv2.resize(portrait.rgb, size, interpolation=cv2.INTER_AREA)
        points = np.asarray(portrait.landmarks, np.float64) * WORK_SIZE / len(portrait.rgb)
        probs = parse_face(picture, points)
        lightness = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]
        right, left = points[_RIGHT].mean(0), points[_LEFT].mean(0)
        across = (left - right) / max(float(np.hypot(*(left - right))), 1e-6)
        down = np.array([-across[1], across[0]])
        grid = np.stack(np.meshgrid(np.arange(WORK_SIZE), np.arange(WORK_SIZE)), -1)
        below = (grid - (right + left) / 2) @ down
        nose, chin = ((points[[_NOSE, _CHIN]] - (right + left) / 2) @ down).tolist()
        likeliest = probs.argmax(0)
        hair, skin = likeliest == INDEX["hair"], likeliest == INDEX["face"]
        distance = float(np.hypot(*(left - right)))
        found = {"hair_length": float((hair & (below > 0)).sum()) / max(distance, 1.0) ** 2}
        if hair.sum() >= _FEWEST:
            found["hair_brightness"] = float(lightness[hair].mean())
        upper = skin & (below > 0.2 * nose) & (below < nose)
        lower = skin & (below > 1.1 * nose) & (below < chin)
        if min(upper.sum(), lower.sum()) >= _FEWEST:
            difference = np.median(lightness[upper]) - np.median(lightness[lower])
            found["stubble"] = float(difference)
        return found
