"""Scores of a face, which tell how strong an edit is; here from its 68 landmarks, by geometry.

Point numbers are iBUG 300-W's, counted from 0: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47,
mouth 48-67; "left" is the left of the image. All lengths are measured along the axes of the face
(x from the left to the right eye, y down at a right angle) in units of the distance `d` between
the two eye centres, so the scores (`roll` aside) do not change when the picture is moved, scaled
or rotated.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from dhr_batch.stages.base import Context
    from dhr_batch.stages.networks.identity import Portrait

NAMES = (
    "smile",
    "mouth_open",
    "mouth_width",
    "eyes_open",
    "brow_raise",
    "face_width",
    "yaw",
    "yaw_degrees",
    "pitch",
    "roll",
)

# Of the nose tip before the eye centres, in units of their distance: 27 and 60 mm in the widely
# used head model whose outer eye corners lie 90 mm apart.
NOSE_DEPTH = 0.45


_DEGREES = "score_yaw_degrees"


def effect_score(edit: str, metrics: Container[str]) -> str:
    """The metric that tells how strong an edit is: the score of its name, for `yaw` the one in
    degrees where that is among the metrics. The answer need not be among them."""
    return _DEGREES if edit == "yaw" and _DEGREES in metrics else f"score_{edit}"


def effect_unit(score: str) -> str:
    """What follows the name of an effect that is judged by this metric: ` [°]`, or nothing."""
    return " [°]" if score == _DEGREES else ""


def scores(landmarks: np.ndarray) -> dict[str, float]:
    """Scores of one face; the keys are `NAMES`.

    landmarks: [68, 2], (x, y) in pixels. Unless said otherwise a score is in units of `d`.

    - ``smile``: mouth width (48, 54) plus the height of the mouth corners over the base of the
      nose (33; negative, corners lie below it). More is more smile. The nose is the reference
      because the lips move when the mouth opens: this form follows published smile directions
      best while depending little on an open mouth.
    - ``mouth_open``: mean gap of the inner lips (61-67, 62-66, 63-65). 0 is closed.
    - ``mouth_width``: distance of the mouth corners (48, 54).
    - ``eyes_open``: eye aspect ratio, mean of both eyes: mean lid gap / eye width; no unit.
      Soukupova and Cech, "Real-Time Eye Blink Detection using Facial Landmarks" (2016), eq. 1.
    - ``brow_raise``: mean height of the brows above their eye centres.
    - ``face_width``: jaw width at mouth height (4, 12) / distance of nasion (27) and chin (8); no
      unit.
    - ``yaw``: offset of the nose tip (30) from the middle between the eyes, along x. Positive:
      the nose points to the right of the image. Mirroring the picture flips the sign.
    - ``yaw_degrees``: the same as the angle of a head whose nose tip lies `NOSE_DEPTH` before its
      eyes, seen from afar; the nose of a person makes it larger or smaller.
    - ``pitch``: distance of the nose tip (30) from the upper lip (51) along y, as a share of the
      distance of the eyes from it; no unit. More is face up. It depends on the person as well:
      compare it within one face only.
    - ``roll``: angle of the eye axis in degrees, positive clockwise on the screen.

    Raises ValueError for another shape, for numbers that are not finite and for points
    that coincide though they never do on a face.
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (68, 2):
        raise ValueError(f"expected 68 landmarks of shape [68, 2], got {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError("landmarks are not finite")
    left, right = points[36:42].mean(0), points[42:48].mean(0)
    axis = right - left
    distance = float(np.hypot(*axis))
    if distance == 0:
        raise ValueError("the two eyes coincide")
    cos, sin = axis / distance
    frame = (points - (left + right) / 2) @ np.array([[cos, -sin], [sin, cos]]) / distance
    x, y = frame[:, 0], frame[:, 1]

    def span(a: int, b: int) -> float:
        return float(np.hypot(*(frame[a] - frame[b])))

    if 0 in (span(36, 39), span(42, 45), span(27, 8), y[51]):
        raise ValueError("landmarks coincide that never do on a face")

    def lid_ratio(i: int) -> float:
        return (span(i + 1, i + 5) + span(i + 2, i + 4)) / (2 * span(i, i + 3))

    width = span(48, 54)
    lift = y[33] - (y[48] + y[54]) / 2
    brows = y[36:42].mean() - y[17:22].mean() + y[42:48].mean() - y[22:27].mean()
    return {
        "smile": float(width + lift),
        "mouth_open": (span(61, 67) + span(62, 66) + span(63, 65)) / 3,
        "mouth_width": width,
        "eyes_open": (lid_ratio(36) + lid_ratio(42)) / 2,
        "brow_raise": float(brows / 2),
        "face_width": span(4, 12) / span(27, 8),
        "yaw": float(x[30]),
        "yaw_degrees": math.degrees(math.atan(float(x[30]) / NOSE_DEPTH)),
        "pitch": float((y[51] - y[30]) / y[51]),
        "roll": math.degrees(math.atan2(sin, cos)),
    }


class Scorer(Protocol):
    """Measures attributes of a face in numbers that grow with them.

    The effect of an edit is judged by `effect_score` of its name: `smile` by the score `smile`.
    label: the model, for tables. names: the keys of every answer.
    """

    label: str
    names: Sequence[str]

    def score(self, portrait: Portrait) -> dict[str, float] | None:
        """Scores of the face in a picture, or None where none is found."""
        ...


class LandmarkScores:
    """`landmarks`: `scores` of the landmarks that `measure` has found."""

    label = "dlib-landmarks68"
    names = NAMES

    def __init__(self, context: Context) -> None:
        pass

    def score(self, portrait: Portrait) -> dict[str, float] | None:
        """See `Scorer`."""
        return None if portrait.landmarks is None else scores(portrait.landmarks)
