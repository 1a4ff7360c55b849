"""Face detection with MTCNN (Zhang et al., 2016), from the package facenet-pytorch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.faces import cascade
from dhr_batch.stages.networks.transfers import to_device

SEARCH_SIDE = 640
FINE_SIDE = 2560
MIN_FACE = 20
# The close-up of `refine`: width in sides of the box, and in pixels after scaling.
_CLOSE_UP, _CLOSE_UP_SIDE = 2.2, 200
# Score above which a search at the first size is enough.
_CONFIDENT = 0.95
_GPU_BATCH = 16


@dataclass(frozen=True, slots=True)
class Face:
    """One detected face, in pixels of the given image.

    Attributes:
        box: Left, top, right and bottom, float64 [4].
        score: Confidence of the detector, 0..1.
        points: Eyes, nose tip and mouth corners, float64 [5, 2]. Of each pair, the one on the left
            of the image comes first.
    """

    box: np.ndarray
    score: float
    points: np.ndarray

    @property
    def side(self) -> float:
        """The shorter side of the box in pixels."""
        return float(min(self.box[2] - self.box[0], self.box[3] - self.box[1]))


def mtcnn(context: Context) -> Detector:
    """Load MTCNN, whose weights are part of the package facenet-pytorch."""
    return Detector(context.device)


class Detector:
    """Detector of all faces in images. Results do not depend on the other images of a batch."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        # This import takes half of the import time of all stages, and the driver does not need it.
        from facenet_pytorch import MTCNN

        self.net = MTCNN(keep_all=True, min_face_size=MIN_FACE, device=self.device)

    def detect(self, images: Sequence[np.ndarray]) -> list[list[Face]]:
        """Return the faces of each image, largest first, in pixels of the image.

        Images longer than 640 px are searched at that size and, if no face has a high score, once
        more at up to 2560 px.

        Args:
            images: uint8 [H, W, 3] of any sizes.
        """
        found = self._search(images, SEARCH_SIDE)
        again = [
            i
            for i, faces in enumerate(found)
            if max(images[i].shape) > SEARCH_SIDE and all(f.score < _CONFIDENT for f in faces)
        ]
        for i, faces in zip(
            again, self._search([images[i] for i in again], FINE_SIDE), strict=True
        ):
            found[i] = faces or found[i]
        return found

    def refine(self, images: Sequence[np.ndarray], faces: Sequence[Face]) -> list[Face]:
        """Return more stable points for one face per image, from a second search in a close-up.

        The points are the mean of both searches. A face that the second search misses is returned
        unchanged.
        """
        views = [_close_up(image, face.box) for image, face in zip(images, faces, strict=True)]
        seen = self._search([view for view, _, _ in views], _CLOSE_UP_SIDE)
        refined = []
        for face, (_, low, scale), candidates in zip(faces, views, seen, strict=True):
            back = [
                Face(c.box * scale + np.tile(low, 2), c.score, c.points * scale + low)
                for c in candidates
            ]
            same = [c for c in back if _distance(c, face) < 0.3 * face.side]
            best = min(same, key=lambda c: _distance(c, face), default=face)
            refined.append(replace(face, points=(face.points + best.points) / 2))
        return refined

    def _search(self, images: Sequence[np.ndarray], side: int) -> list[list[Face]]:
        small = [_reduced(image, side) for image in images]
        found: list[list[Face]] = [[] for _ in images]
        for group in self._groups(small):
            for i, faces in zip(group, self._detect_equal([small[i] for i in group]), strict=True):
                scale = np.array(images[i].shape[1::-1]) / np.array(small[i].shape[1::-1])
                found[i] = [
                    Face(f.box * np.tile(scale, 2), f.score, f.points * scale) for f in faces
                ]
        return found

    def _groups(self, images: Sequence[np.ndarray]) -> Iterator[list[int]]:
        # On a CPU, a larger batch changes rounding and saves no time.
        limit = _GPU_BATCH if self.device.type != "cpu" else 1
        by_shape = defaultdict(list)
        for i, image in enumerate(images):
            if min(image.shape[:2]) >= MIN_FACE:
                by_shape[image.shape].append(i)
        for members in by_shape.values():
            for start in range(0, len(members), limit):
                yield members[start : start + limit]

    def _detect_equal(self, images: list[np.ndarray]) -> list[list[Face]]:
        pictures = to_device(torch.from_numpy(np.stack(images)), self.device)
        with torch.inference_mode():
            found = cascade.detect(self.net, pictures)
        return [
            sort_faces(
                [
                    Face(box.astype(np.float64), float(score), points.astype(np.float64))
                    for box, score, points in zip(*of_image, strict=True)
                ]
            )
            for of_image in found
        ]


def sort_faces(faces: list[Face]) -> list[Face]:
    """Sort faces by area, largest first, and equal ones in reading order."""
    return sorted(faces, key=lambda f: (-_area(f.box), f.box[1], f.box[0]))


def _distance(a: Face, b: Face) -> float:
    return float(np.hypot(*(a.box[:2] + a.box[2:] - b.box[:2] - b.box[2:]) / 2))


def _close_up(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a square around the box, its corner, and the scale from it to the image.

    The square is black outside the image.
    """
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max() * _CLOSE_UP / 2
    low = np.floor(centre - half).astype(int)
    side = int(np.ceil(2 * half)) + 1
    view = Image.fromarray(image).crop((*low.tolist(), *(low + side).tolist()))
    size = (_CLOSE_UP_SIDE, _CLOSE_UP_SIDE)
    view = view.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(view), low, side / _CLOSE_UP_SIDE


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _reduced(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image
    ratio = side / max(height, width)
    size = (max(1, math.floor(width * ratio)), max(1, math.floor(height * ratio)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX, reducing_gap=2.0))
