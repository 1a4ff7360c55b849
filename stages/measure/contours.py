"""What an edit leaves of the contours that it moves, and of the background behind them.

All values are of pictures at 256 px, and need to know where the person was and where it is after
the edit. The motion between plain renders says so (`stages.motion`): a picture with a second
contour would mislead any detector of the first.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from dhr_batch.stages.measure.metrics import MIN_SHARE
from dhr_batch.stages.motion import SIDE, Motion

# Lengths in pixels of `SIDE`. The background begins this far from the person.
_BEYOND = 12
# A contour has moved if the new one is farther away than this.
_MOVED = 4.0
# Half of the distance over which derivatives are taken, and the border without contours.
_STEP, _BORDER = 2, 4
# Fewer points of a contour say nothing.
_FEWEST = 16


def contour_metrics(
    image: np.ndarray, refined: np.ndarray, source: np.ndarray | None, motion: Motion
) -> dict[str, float]:
    """Return the metrics of an edited picture by name. What cannot be measured is left out.

    Args:
        image: The edited picture, uint8 [R, R, 3].
        refined: The refined picture.
        source: The photograph, or None if it is not there.
        motion: The motion of the edit.

    Returns:
        ``background_psnr`` to the photograph and ``background_psnr_refined`` to the refined picture
        (`background_psnr`), and ``ghost`` (`ghost`).
    """
    small, before = picture_at_side(image), picture_at_side(refined)
    beyond = background(motion.before, motion.after)
    found = {
        "background_psnr": None
        if source is None
        else background_psnr(small, picture_at_side(source), beyond),
        "background_psnr_refined": background_psnr(small, before, beyond),
        "ghost": ghost(before, small, motion.before, motion.after),
    }
    return {name: value for name, value in found.items() if value is not None}


def background(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return where a picture shows neither the person before an edit nor after it.

    Args:
        before, after: The person, bool [H, W].

    Returns:
        The pixels that are more than 12 px away from both, bool [H, W].
    """
    away = cv2.distanceTransform((~(before | after)).astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(away > _BEYOND)


def background_psnr(image: np.ndarray, other: np.ndarray, beyond: np.ndarray) -> float | None:
    """Return ``10 log10(255^2 / max(MSE, 1/12))`` of two pictures in the background, in dB.

    The MSE is of 8-bit levels. Rounding to them has a variance of 1/12 on its own, so equal
    pictures have 58.9 dB and means over images are finite.

    Args:
        image, other: uint8 [H, W, 3].
        beyond: The background, bool [H, W].

    Returns:
        The value, or None if the background is less than 0.5 % of the picture.

    Example:
        >>> picture, everywhere = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)
        >>> round(background_psnr(picture, picture + np.uint8(1), everywhere), 2)
        48.13
    """
    if beyond.mean() < MIN_SHARE:
        return None
    error = np.square(image[beyond].astype(np.float64) - other[beyond]).mean()
    return 10 * math.log10(255**2 / max(float(error), 1 / 12))


def ghost(
    refined: np.ndarray, edited: np.ndarray, before: np.ndarray, after: np.ndarray
) -> float | None:
    """Return how much of the old contour of the person an edited picture still shows.

    At points of the old contour that are more than 4 px away from the new one, with the derivative
    d along the normal of the old contour (a difference over 4 px, for each colour channel), it is
    the slope of a regression through the origin:

        ghost = sum d(edited) d(refined) / sum d(refined)^2

    1 means that the old contour is fully there, 0 that nothing of it is.

    Args:
        refined, edited: uint8 [H, W, 3].
        before, after: The person in each, bool [H, W].

    Returns:
        The value, or None if fewer than 16 points of the contour have moved.
    """
    signed = _signed_distance(before)
    normal = np.stack(np.gradient(cv2.GaussianBlur(signed, (0, 0), 2.0)), -1)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-6)
    points = (np.abs(signed) <= 1) & before & (np.abs(_signed_distance(after)) > _MOVED)
    inner = np.zeros_like(points)
    inner[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    y, x = np.nonzero(points & inner)
    if len(y) < _FEWEST:
        return None
    step = np.rint(_STEP * normal[y, x]).astype(int)
    there, here = (y + step[:, 0], x + step[:, 1]), (y - step[:, 0], x - step[:, 1])
    was, now = (picture[there].astype(np.float64) - picture[here] for picture in (refined, edited))
    total = float(np.square(was).sum())
    return float((was * now).sum()) / total if total else None


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance to the edge of a mask, positive inside, float32 [H, W]."""
    solid = mask.astype(np.uint8)
    inside, outside = (cv2.distanceTransform(m, cv2.DIST_L2, 5) for m in (solid, 1 - solid))
    # Without any edge, OpenCV returns huge numbers.
    return np.asarray(np.clip(inside - outside, -sum(mask.shape), sum(mask.shape)))


def picture_at_side(image: np.ndarray) -> np.ndarray:
    """Return a picture uint8 [R, R, 3] at `SIDE` px, the size at which contours are measured."""
    if image.shape[0] == SIDE:
        return image
    return np.asarray(cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
