"""The person in a photograph, by GrabCut (Rother, Kolmogorov and Blake, 2004)."""

from __future__ import annotations

import cv2
import numpy as np

from dhr_batch.stages.networks.parsers.face_geometry import Geometry
from dhr_batch.stages.networks.parsers.soft_masks import (
    WORK_SIZE,
    Map,
)


def person_mask(image: Map, face: Geometry) -> Map:
    """Return a soft mask of the person, float32 [H, W], from GrabCut seeded with the face.

    Seeds: an ellipse around the head is probably foreground and everything far outside of it
    background; the inner face is foreground; a trapezoid below the chin is probably the body.
    """
    u, v = face.u, face.v
    head = np.hypot(u / 0.72, (v + 0.02) / np.where(v < 0, 1.0, 1.05))
    body = (v > 0.75 * face.chin_v) & (np.abs(u) < 0.4 + 1.2 * (v - 0.75 * face.chin_v))
    seeds = np.full(u.shape, cv2.GC_PR_BGD, np.uint8)
    seeds[(head > 1.7) & (v < 0.25)] = cv2.GC_BGD
    seeds[(head < 1.0) | body] = cv2.GC_PR_FGD
    seeds[(face.inside > 0.06) & (v > face.brow_v - 0.1)] = cv2.GC_FGD
    if not (seeds == cv2.GC_BGD).any():
        seeds[:2] = cv2.GC_BGD
    size = (WORK_SIZE // 2, WORK_SIZE // 2)
    small = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)[..., ::-1])
    mask = np.ascontiguousarray(cv2.resize(seeds, size, interpolation=cv2.INTER_NEAREST))
    # GrabCut takes its first clusters from OpenCV's global random generator.
    cv2.setRNGSeed(0)
    cv2.grabCut(
        small, mask, (0, 0, 1, 1), np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK
    )
    person = ((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).astype(np.float32)
    person = cv2.resize(person, u.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(person, (0, 0), 1.5)
