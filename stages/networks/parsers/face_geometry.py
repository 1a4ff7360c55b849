"""The geometry of a face, from its 68 landmarks: face coordinates and masks of its parts.

Positions are face coordinates (u, v) in face widths, see `Geometry`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dhr_batch.stages.networks.parsers.soft_masks import Map

_EYES = {"right_eye": range(36, 42), "left_eye": range(42, 48)}
_BROWS = {"right_brow": range(17, 22), "left_brow": range(22, 27)}
_UPPER_LIP = (48, 49, 50, 51, 52, 53, 54, 64, 63, 62, 61, 60)
_LOWER_LIP = (54, 55, 56, 57, 58, 59, 48, 60, 67, 66, 65, 64)
_INNER_MOUTH = range(60, 68)


@dataclass(frozen=True)
class Geometry:
    """A face in the plane of the crop.

    Attributes:
        points: Landmarks, float64 [68, 2], in pixels.
        width: Width of the face in pixels.
        u, v: Face coordinates of each pixel, float32 [H, W] in face widths. The origin lies between
            the eyes, u points to the right of the image and v from the eyes to the chin.
        inside: Signed distance to the outline of the face, float32 [H, W] in face widths, positive
            inside.
        brow_v, chin_v: Height of the brows and of the chin.
    """

    points: np.ndarray
    width: float
    u: np.ndarray
    v: np.ndarray
    inside: np.ndarray
    brow_v: float
    chin_v: float


def _fill(shape: tuple[int, int], polygon: np.ndarray) -> Map:
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(polygon * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def _signed_distance(mask: Map) -> Map:
    solid = (mask > 0.5).astype(np.uint8)
    inner = cv2.distanceTransform(solid, cv2.DIST_L2, 5)
    signed = inner - cv2.distanceTransform(1 - solid, cv2.DIST_L2, 5)
    # A mask of one value everywhere has no border, and OpenCV then returns huge numbers.
    return np.clip(signed, -sum(mask.shape), sum(mask.shape))


def geometry(points: np.ndarray, shape: tuple[int, int]) -> Geometry:
    """Return the geometry of a face in a picture.

    Args:
        points: Landmarks, float64 [68, 2], in pixels.
        shape: Height and width of the picture.
    """
    right, left = points[36:42].mean(0), points[42:48].mean(0)
    # A profile squeezes the jaw line, so the height of the face bounds its width from below.
    centre = (right + left) / 2
    across = left - right
    across = across / max(float(np.hypot(*across)), 1e-6)
    down = np.array([-across[1], across[0]])
    height = max(float((points[8] - centre) @ down), 1.0)
    width = max(float(np.hypot(*(points[16] - points[0]))), 0.8 * height, 1.0)
    grid = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), -1) - centre
    brow = float(((points[17:27].mean(0) - centre) @ down) / width)
    nose = float(((points[33] - centre) @ down) / width)
    # Rule of thirds: the hairline is about as far above the brows as the base of the nose is below.
    hairline = brow - 0.85 * (nose - brow)
    middle = (points[0] + points[16]) / 2
    rise = max(float((middle - centre) @ down) / width - hairline, 0.1)
    half = (points[16] - points[0]) / 2
    angles = np.linspace(0, np.pi, 25)[1:-1]
    arc = middle + np.cos(angles)[:, None] * half - np.sin(angles)[:, None] * rise * width * down
    outline = _fill(shape, np.concatenate([points[:17], arc]))
    return Geometry(
        points=points,
        width=width,
        u=(grid @ across / width).astype(np.float32),
        v=(grid @ down / width).astype(np.float32),
        inside=(_signed_distance(outline) / width).astype(np.float32),
        brow_v=brow,
        chin_v=height / width,
    )


def part_masks(face: Geometry) -> dict[str, Map]:
    """Return soft masks [H, W] of brows, eyes, nose and mouth."""
    shape, p, width = face.u.shape, face.points, face.width
    parts: dict[str, Map] = {}
    for name, ids in _BROWS.items():
        mask = np.zeros(shape, np.uint8)
        line = np.round(p[list(ids)] * 16).astype(np.int32)
        thickness = max(1, round(0.045 * width))
        cv2.polylines(mask, [line], False, 255, thickness, cv2.LINE_AA, 4)
        parts[name] = mask.astype(np.float32) / 255
    for name, ids in _EYES.items():
        eye = p[list(ids)]
        parts[name] = _fill(shape, eye.mean(0) + 1.25 * (eye - eye.mean(0)))
    wings = (p[[31, 35]] - p[33]) * [1.35, 1.0] + p[33]
    sides = p[28] + 0.55 * (wings - p[28])
    nose = [p[27], sides[1], wings[1], p[35], p[34], p[33], p[32], p[31], wings[0], sides[0]]
    parts["nose"] = _fill(shape, np.array(nose))
    parts["upper_lip"] = _fill(shape, p[list(_UPPER_LIP)])
    parts["lower_lip"] = _fill(shape, p[list(_LOWER_LIP)])
    parts["inner_mouth"] = _fill(shape, p[list(_INNER_MOUTH)])
    return {name: cv2.GaussianBlur(mask, (0, 0), 0.8) for name, mask in parts.items()}
