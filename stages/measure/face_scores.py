"""Scores of a face, which measure how strong an edit is, from the geometry of 68 landmarks.

Points are numbered from 0 as in iBUG 300-W: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47 and mouth
48-67. "Left" means left in the image. Lengths are measured along the axes of the face (x from the
left to the right eye, y downwards at a right angle) in units of the distance `d` between the eye
centres, so that no score but `roll` changes when the picture is moved, scaled or rotated.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.networks.faces.identity import Portrait

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

# Depth of the nose tip before the eye centres in units of their distance: 27 and 60 mm in the
# widely used head model whose outer eye corners are 90 mm apart.
NOSE_DEPTH = 0.45


# Prefix of scores among metrics.
SCORE = "score_"
_DEGREES = f"{SCORE}yaw_degrees"
# The scores by which other networks see what edits do, by the names of the edits.
_JUDGES = {"smile": "happy", "age": "age_face_api", "gender": "gender_face_api"} | {
    name: f"{name}_mesh" for name in ("yaw", "pitch", "roll")
}
_UNITS = {"age": "years", "age_face_api": "years"} | dict.fromkeys(
    ("yaw_degrees", "roll", *(f"{name}_mesh" for name in ("yaw", "pitch", "roll"))), "°"
)
# Edits whose score has another name.
_SCORES = {"smile_closed": "smile", "smile_open": "smile"} | {
    f"{name}_degrees": name for name in ("yaw", "pitch", "roll")
}


def effect_score(edit: str, metrics: Container[str]) -> str:
    """Return the metric that measures how strong an edit is.

    This is the score with the name of the edit, for `yaw` the one in degrees if it is among the
    metrics, for a closed or open smile that of a smile, and for an edit by degrees that of its
    angle. The returned metric need not be among them.

    Example:
        >>> effect_score("smile", ()), effect_score("yaw", {"score_yaw", "score_yaw_degrees"})
        ('score_smile', 'score_yaw_degrees')
    """
    name = _SCORES.get(edit, edit)
    return _DEGREES if name == "yaw" and _DEGREES in metrics else f"{SCORE}{name}"


def judge_score(edit: str) -> str:
    """Return the metric by which a network sees an edit that its direction was not fitted to.

    It is empty if no scorer of the registry has one. The strength of an edit by degrees was set by
    it for each image, so of these the landmarks are the independent judge.

    Example:
        >>> judge_score("smile"), judge_score("face_width")
        ('score_happy', '')
    """
    name = _SCORES.get(edit, edit)
    return f"{SCORE}{_JUDGES[name]}" if name in _JUDGES else ""


def effect_unit(score: str) -> str:
    """Return the unit of a score to append to a title, or nothing.

    Example:
        >>> effect_unit("score_age"), effect_unit("score_smile")
        (' [years]', '')
    """
    unit = _UNITS.get(score.removeprefix(SCORE))
    return f" [{unit}]" if unit else ""


def scores(landmarks: np.ndarray) -> dict[str, float]:
    """Return the scores of one face by name, in units of `d` unless another unit is given.

    - ``smile``: mouth width (48, 54) plus the height of the mouth corners over the base of the
      nose (33), which is negative because the corners lie below it. A larger value is a stronger
      smile. The nose is the reference because lips move when the mouth opens: this form follows
      published smile directions best and depends little on an open mouth.
    - ``mouth_open``: mean gap of the inner lips (61-67, 62-66, 63-65), 0 for a closed mouth.
    - ``mouth_width``: distance of the mouth corners (48, 54).
    - ``eyes_open``: eye aspect ratio, mean of both eyes: mean lid gap / eye width, without unit.
      Soukupova and Cech, "Real-Time Eye Blink Detection using Facial Landmarks" (2016), eq. 1.
    - ``brow_raise``: mean height of the brows above their eye centres.
    - ``face_width``: jaw width at the height of the mouth (4, 12) / distance of nasion (27) and
      chin (8), without unit.
    - ``yaw``: offset of the nose tip (30) from the middle between the eyes, along x. It is positive
      if the nose points to the right of the image. Mirroring the picture changes the sign.
    - ``yaw_degrees``: the same as angle ``atan(yaw / NOSE_DEPTH)`` of a head seen from a distance;
      the nose of a person makes it larger or smaller.
    - ``pitch``: distance of the nose tip (30) from the upper lip (51) along y, as a share of the
      distance of the eyes from it, without unit. It is larger if the face looks up. It depends on
      the person as well, so compare it within one face only.
    - ``roll``: angle of the eye axis in degrees, positive clockwise on the screen.

    Args:
        landmarks: Points (x, y) in pixels, [68, 2].

    Raises:
        ValueError: The landmarks have another shape, are not finite, or coincide, which is
            impossible on a face.
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
        raise ValueError("two landmarks coincide, which is impossible on a face")

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
    """A model that measures attributes of a face in numbers that grow with them.

    The effect of an edit is measured by the score of its name (`effect_score`).

    Attributes:
        label: Name of the model in tables.
        names: Names of the scores.
    """

    label: str
    names: Sequence[str]

    def score(self, portrait: Portrait) -> dict[str, float] | None:
        """Return the scores of the face in a picture by name, or None if no face is found."""
        ...


class LandmarkScores:
    """`landmarks`: the scores of the landmarks that `measure` has found."""

    label = "dlib-landmarks68"
    names = NAMES

    def __init__(self, context: Context) -> None:
        pass

    def score(self, portrait: Portrait) -> dict[str, float] | None:
        """See `Scorer`."""
        return None if portrait.landmarks is None else scores(portrait.landmarks)
