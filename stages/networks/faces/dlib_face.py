"""The 68 facial landmarks and the 128-d face descriptor of dlib (King, "Dlib-ml", JMLR 2009)."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any, Literal

import dlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.faces import dlib_resnet
from dhr_batch.stages.networks.faces.identity import Network, Portrait

FoundBy = Literal["hog", "ffhq"]

# Box of dlib's HOG detector in an FFHQ-aligned crop, as shares of its side: median of photographs.
FFHQ_BOX = (0.231, 0.294, 0.794, 0.853)
# The detector finds faces of 80 px and more; an aligned face is about half as wide as its crop.
_SEARCH_SIDE = 320
_GLANCE_SIDE = 200
_MIN_SIDE = 16
_ALIGN_SIDE = 2048


def landmarks68(context: Context) -> Landmarks68:
    """Load the HOG detector and 68-point shape predictor of dlib."""
    return Landmarks68(str(context.models("dlib-landmarks68")))


def identity(context: Context) -> DlibIdentity:
    """Load the face descriptor network of dlib."""
    return DlibIdentity(dlib_resnet.load(context.models("dlib-face-resnet")), context)


class FrontalFaces:
    """The HOG detector of dlib, which is a part of the library and needs no model file."""

    def __init__(self) -> None:
        self.detector = dlib.get_frontal_face_detector()
        self._lock = threading.Lock()

    def _detect(self, rgb: np.ndarray, upsample: int = 0) -> Any:
        # The detector keeps its image pyramid between calls, and stages run in several threads.
        with self._lock:
            return self.detector(rgb, upsample)

    def locate(self, rgb: np.ndarray) -> tuple[np.ndarray, FoundBy]:
        """Return the face box of an FFHQ-aligned crop, float64 [4], and how it was found.

        `hog` means that the detector found it. `ffhq` means that the detector found no face near
        the centre, and the box is the usual one of aligned faces.
        """
        usual, near = self._near(rgb, _SEARCH_SIDE)
        if near:
            return max(near, key=lambda box: overlap(box, usual)), "hog"
        return usual, "ffhq"

    def sees(self, rgb: np.ndarray) -> bool:
        """Whether the detector finds the face of an FFHQ-aligned crop, in less than half the time.

        Faces below two fifths of the crop are missed, unlike by `locate`.
        """
        return bool(self._near(rgb, _GLANCE_SIDE)[1])

    def _near(self, rgb: np.ndarray, side: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the usual box of aligned faces, and those that the detector finds near it."""
        usual = np.array(FFHQ_BOX) * np.tile(np.array(rgb.shape[1::-1], np.float64), 2)
        return usual, [box for box in self.faces(rgb, side) if overlap(box, usual) > 0.3]

    def faces(self, rgb: np.ndarray, side: int = _SEARCH_SIDE) -> list[np.ndarray]:
        """Return the boxes of the HOG detector, float64 [4] each, searched at `side` pixels."""
        height, width = rgb.shape[:2]
        ratio = side / max(height, width)
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        small = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR))
        back = np.tile([width / size[0], height / size[1]], 2)
        boxes = (np.array([r.left(), r.top(), r.right(), r.bottom()]) for r in self._detect(small))
        return [box * back for box in boxes]


@cache
def frontal_faces() -> FrontalFaces:
    """Return the detector of this process. To make one takes a third of a second."""
    return FrontalFaces()


class Landmarks68(FrontalFaces):
    """The 68 landmarks of the iBUG 300-W scheme."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.predictor = dlib.shape_predictor(path)

    def find(self, rgb: np.ndarray, box: np.ndarray | None = None) -> np.ndarray | None:
        """Return the landmarks of one face, float64 [68, 2] (x, y) in pixels.

        Args:
            rgb: uint8 [H, W, 3].
            box: Left, top, right and bottom of the face as dlib's detector gives them: a square
                from brows to chin (`find_near` takes boxes of other detectors). None for an
                FFHQ-aligned crop, in which `locate` finds the box.

        Returns:
            The landmarks, or None for images below 16 px.
        """
        if min(rgb.shape[:2]) < _MIN_SIDE:
            return None
        left, top, right, bottom = self.locate(rgb)[0] if box is None else box
        rectangle = dlib.rectangle(round(left), round(top), round(right), round(bottom))
        shape = self.predictor(np.ascontiguousarray(rgb), rectangle)
        return np.array([(p.x, p.y) for p in shape.parts()], np.float64)

    def find_near(self, rgb: np.ndarray, rough_box: np.ndarray) -> np.ndarray | None:
        """Return the landmarks of a face that another detector found, as `find` does.

        The whole photograph is searched after one upsampling, as in published FFHQ alignment,
        because landmarks depend on the box of the detector. Photographs above 1024 px are searched
        at 2048 px. If dlib's detector does not find the face, its box is derived from `rough_box`.

        Args:
            rgb: uint8 [H, W, 3].
            rough_box: Box of the other detector, [4].
        """
        if max(rgb.shape[:2]) <= _ALIGN_SIDE // 2:
            found = self._detect(np.ascontiguousarray(rgb), 1)
            boxes = [np.array([r.left(), r.top(), r.right(), r.bottom()], float) for r in found]
        else:
            boxes = self.faces(rgb, _ALIGN_SIDE)
        near = [box for box in boxes if overlap(box, rough_box) > 0.2]
        best = max(near, key=lambda box: overlap(box, rough_box), default=None)
        return self.find(rgb, hog_box(rough_box) if best is None else best)


class DlibIdentity(Network):
    """128-d face descriptor. Below a distance of 0.6, dlib considers two faces the same person."""

    label = "dlib-face-resnet"

    def _crop(self, portrait: Portrait) -> Tensor | None:
        """Cut out 150 px by the landmarks, with dlib's own function. None without landmarks."""
        landmarks = portrait.landmarks
        if landmarks is None:
            return None
        points = [dlib.point(round(x), round(y)) for x, y in np.asarray(landmarks, np.float64)]
        low, high = landmarks.min(0), landmarks.max(0)
        box = dlib.rectangle(round(low[0]), round(low[1]), round(high[0]), round(high[1]))
        face = dlib.full_object_detection(box, points)
        chip = dlib.get_face_chip(np.ascontiguousarray(portrait.rgb), face, dlib_resnet.SIDE)
        return torch.from_numpy(chip).permute(2, 0, 1)[None]


def hog_box(mtcnn_box: np.ndarray) -> np.ndarray:
    """Return the box dlib would give for MTCNN's box [4], from medians over photographs."""
    centre = (mtcnn_box[:2] + mtcnn_box[2:]) / 2
    side = (mtcnn_box[2:] - mtcnn_box[:2]).max()
    centre = centre + np.array([0.0, 0.058]) * side
    return np.concatenate([centre - 0.406 * side, centre + 0.406 * side])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom).

    Example:
        >>> round(overlap(np.array([0, 0, 2, 2]), np.array([1, 0, 3, 2])), 3)
        0.333
    """
    inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner
    return float(inner / union) if union > 0 else 0.0
