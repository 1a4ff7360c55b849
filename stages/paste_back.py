"""Put an edited crop back into the photograph that it was cut from.

Where the edit changes little, its difference from the refined picture is added to the photograph,
which keeps its own detail. Where it changes much, the edited picture replaces the photograph, since
old detail would show through. Both fade out towards the border of the crop. With the photograph p,
the refined and edited pictures r and e, the seam s and the replaced share a, both in 0..1:

    result = p + s ((e - r) + a (e - p - (e - r)))
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from dhr_batch.stages.ffhq import crop_of_photograph, quad_side

# Width of the seam, as a share of the side of the crop.
_SEAM = 0.12
# Distance that a change reaches into its surroundings, as a share of the side of the crop.
_REACH = 0.012
# Mean change in grey levels up to which the detail of the photograph is kept, and from which on it
# is replaced.
_KEPT, _REPLACED = 4.0, 16.0


class Crop(NamedTuple):
    """An edited crop: corners in the photograph, [4, 2], and its pictures, uint8 [R, R, 3]."""

    quad: np.ndarray
    refined: np.ndarray
    edited: np.ndarray


def paste_all(photograph: np.ndarray, crops: Iterable[Crop]) -> np.ndarray:
    """Return the photograph with edits of several faces in it, uint8 [H, W, 3].

    Smaller crops are pasted first. Where crops overlap, a larger one, whose person is mostly in
    front, replaces what it changes much, and keeps the rest.

    Raises:
        ValueError: As `paste_back`.
    """
    for crop in sorted(crops, key=lambda crop: quad_side(crop.quad)):
        photograph = paste_back(photograph, *crop)
    return photograph


def paste_back(
    photograph: np.ndarray, quad: np.ndarray, refined: np.ndarray, edited: np.ndarray
) -> np.ndarray:
    """Return the photograph with an edit in it, uint8 [H, W, 3].

    Pixels outside the quad, and pixels around which the edit has no effect, do not change.

    Args:
        photograph: The upright photograph, uint8 [H, W, 3].
        quad: Corners of the crop in it, [4, 2], as `align` stored them.
        refined, edited: The crop before and after the edit, uint8 [R, R, 3].

    Raises:
        ValueError: The quad lies outside the photograph, or the crops differ in shape.
    """
    size = len(edited)
    if refined.shape != edited.shape or edited.shape != (size, size, 3):
        raise ValueError(f"crops of shapes {list(refined.shape)} and {list(edited.shape)} differ")
    height, width = photograph.shape[:2]
    quad = np.asarray(quad, np.float64)
    left, top = np.maximum(np.floor(quad.min(0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(quad.max(0)).astype(int) + 2, (width, height))
    if right <= left or bottom <= top:
        raise ValueError(f"the quad {quad.tolist()} lies outside the {width} x {height} photograph")
    to_crop = crop_of_photograph(quad, (width, height), size)
    to_crop = to_crop @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1]], np.float64)
    window = (int(right - left), int(bottom - top))

    change = edited.astype(np.float32) - refined
    finer = quad_side(quad) / size
    seam = _seam(to_crop, size, window)[..., None]
    share = _warp(_replaced_share(change), to_crop, finer, window)[..., None].clip(0, 1)
    result = photograph.copy()
    before = result[top:bottom, left:right].astype(np.float32)
    replaced = _warp(edited.astype(np.float32), to_crop, finer, window) - before
    added = _warp(change, to_crop, finer, window)
    after = before + seam * (added + share * (replaced - added))
    result[top:bottom, left:right] = np.clip(np.rint(after), 0, 255).astype(np.uint8)
    return result


def _replaced_share(change: np.ndarray) -> np.ndarray:
    """Return how much of the detail of the photograph an edit replaces, 0..1, float32 [R, R]."""
    size = cv2.GaussianBlur(np.abs(change).mean(2), (0, 0), _REACH * len(change))
    return _smooth((size - _KEPT) / (_REPLACED - _KEPT))


def _seam(to_crop: np.ndarray, size: int, window: tuple[int, int]) -> np.ndarray:
    """Return 1 inside the crop, falling to 0 at its border and outside, float32 [h, w]."""
    x, y = np.arange(window[0]), np.arange(window[1])[:, None]
    sides = []
    for a, b, c in to_crop[:2]:
        at = (a * x + b * y + (c + 0.5)) / size
        sides.append(np.minimum(at, 1 - at).astype(np.float32))
    return _smooth(np.minimum(*sides) / _SEAM)


def _smooth(share: np.ndarray) -> np.ndarray:
    """Return the smooth step ``t^2 (3 - 2 t)`` of values clipped to 0..1."""
    t = np.clip(share, 0, 1)
    return t * t * (3 - 2 * t)


def _warp(
    picture: np.ndarray, to_crop: np.ndarray, finer: float, window: tuple[int, int]
) -> np.ndarray:
    """Warp a crop to the photograph, which has `finer` pixels per pixel of the crop."""
    if finer < 1:
        size = len(picture)
        small = max(1, round(size * finer))
        picture = cv2.resize(picture, (small, small), interpolation=cv2.INTER_AREA)
        scale = small / size
        shift = 0.5 * (scale - 1)
        to_crop = np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]]) @ to_crop
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        picture, to_crop[:2], window, flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
