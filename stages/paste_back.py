"""Puts an edited crop back into the photograph that it was cut out of.

Where the edit changes little, its difference from the refined picture is added to the photograph,
which keeps its own detail; where it changes much, the edited picture takes the place, since old
detail would shine through it. Towards the border of the crop both fade out.
"""

from __future__ import annotations

import cv2
import numpy as np

from dhr_batch.stages.ffhq import crop_of_photograph, quad_side

# Share of the crop's side over which the seam fades.
_SEAM = 0.12
# Share of it by which a change reaches into its surroundings.
_REACH = 0.012
# Mean change, of 255, up to which the photograph's detail stays, and from which on none does.
_STAYS, _GONE = 4.0, 16.0


def paste_back(
    photograph: np.ndarray, quad: np.ndarray, refined: np.ndarray, edited: np.ndarray
) -> np.ndarray:
    """The photograph with the edit in it.

    photograph: upright, uint8 [H, W, 3]. quad: [4, 2], which `align` stored for this photograph.
    refined, edited: the crop before and after the edit, uint8 [R, R, 3].
    Returns uint8 [H, W, 3]. A pixel outside the quad is the photograph's, and so is every pixel
    where `edited` equals `refined` all around.
    Raises ValueError where the quad lies outside the photograph or the crops do not fit together.
    """
    size = len(edited)
    if refined.shape != edited.shape or edited.shape != (size, size, 3):
        raise ValueError(f"crops of {list(refined.shape)} and {list(edited.shape)} do not fit")
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
    gone = _warp(_gone(change), to_crop, finer, window)[..., None].clip(0, 1)
    result = photograph.copy()
    before = result[top:bottom, left:right].astype(np.float32)
    replaced = _warp(edited.astype(np.float32), to_crop, finer, window) - before
    added = _warp(change, to_crop, finer, window)
    after = before + seam * (added + gone * (replaced - added))
    result[top:bottom, left:right] = np.clip(np.rint(after), 0, 255).astype(np.uint8)
    return result


def _gone(change: np.ndarray) -> np.ndarray:
    """How much of the photograph's detail an edit replaces, 0 to 1, float32 [R, R]."""
    size = cv2.GaussianBlur(np.abs(change).mean(2), (0, 0), _REACH * len(change))
    return _smooth((size - _STAYS) / (_GONE - _STAYS))


def _seam(to_crop: np.ndarray, size: int, window: tuple[int, int]) -> np.ndarray:
    """1 inside the crop, falling to 0 at its border and outside. float32 [h, w]."""
    x, y = np.arange(window[0]), np.arange(window[1])[:, None]
    sides = []
    for a, b, c in to_crop[:2]:
        at = (a * x + b * y + (c + 0.5)) / size
        sides.append(np.minimum(at, 1 - at).astype(np.float32))
    return _smooth(np.minimum(*sides) / _SEAM)


def _smooth(share: np.ndarray) -> np.ndarray:
    t = np.clip(share, 0, 1)
    return t * t * (3 - 2 * t)


def _warp(
    picture: np.ndarray, to_crop: np.ndarray, finer: float, window: tuple[int, int]
) -> np.ndarray:
    """A crop seen from the photograph. finer: pixels of the photograph per pixel of the crop."""
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
