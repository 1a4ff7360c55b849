"""Procedural occluders with known masks: textured shapes that hide a given share of a face.

There are four kinds: a `hand`, a face `mask` that reaches up from the chin, a `frame` around the
middle of the face, and a plate with `text`. Half of them get the mean colour of the face, as a hand
has. Edges are softened by a mean over 3x3 pixels, because cameras do not record sharper edges. With
the soft mask a, the occluder o and the image x, the result is ``a o + (1 - a) x``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import skimage.data

KINDS = ("hand", "mask", "frame", "text")
PHOTOGRAPHS = ("coffee", "chelsea", "brick", "gravel", "grass", "immunohistochemistry")
# Function from the size t >= 0 of a shape to its mask, bool [H, W], which is empty at 0 and covers
# the face at 1.
Shape = Callable[[float], np.ndarray]
_HALVINGS = 24
# Window in pixels over which an edge is blurred.
_EDGE = (3, 3)
# Fingers of a hand: angle from the middle finger in radians, length and width in palms.
_FINGERS = ((-0.42, 1.8, 0.4), (-0.14, 2.1, 0.44), (0.14, 2.1, 0.44), (0.42, 1.8, 0.42))
_THUMB = (1.15, 1.3, 0.45)


@dataclass(frozen=True, slots=True)
class Occluded:
    """A picture with an occluder.

    The edge is soft: pixels just outside the mask show part of the occluder, and pixels just inside
    it part of the picture.

    Attributes:
        image: uint8 [H, W, 3].
        mask: Where the occluder is, bool [H, W].
        kind: One of `KINDS`.
    """

    image: np.ndarray
    mask: np.ndarray
    kind: str


def occlude(
    rng: np.random.Generator, image: np.ndarray, face: np.ndarray, share: float, kind: str
) -> Occluded:
    """Hide a share of the face under an occluder.

    Pixels that do not touch the mask are unchanged.

    Args:
        rng: Source of all random choices.
        image: uint8 [H, W, 3].
        face: Region of the face, bool [H, W].
        share: Share of the face to hide, in (0, 1), met as closely as whole pixels allow.
        kind: One of `KINDS`.

    Raises:
        ValueError: The face is empty.

    Example:
        >>> face = np.zeros((64, 64), bool)
        >>> face[16:48, 16:48] = True
        >>> picture = np.zeros((64, 64, 3), np.uint8)
        >>> hidden = occlude(np.random.default_rng(0), picture, face, 0.25, "mask")
        >>> bool(abs(hidden.mask[face].mean() - 0.25) < 0.05)
        True
    """
    if not face.any():
        raise ValueError("the mask of the face is empty, so no part of it can be covered")
    shape = {"hand": _hand, "mask": _mask, "frame": _frame, "text": _plate}[kind](rng, face)
    mask = _sized(shape, face, share)
    surface = _texture(rng, image.shape[0]) if kind != "text" else _print(rng, image.shape[0])
    values = surface[: image.shape[0], : image.shape[1]] * _shade(mask)[..., None]
    if rng.random() < 0.5:
        middle = values[mask].mean(0)
        values = (values - middle) * rng.uniform(0.7, 1.0) + image[face].mean(0)
    opaque = cv2.blur(mask.astype(np.float32), _EDGE)[..., None]
    out = np.round(opaque * values.clip(0, 255) + (1 - opaque) * image).astype(np.uint8)
    return Occluded(out, mask, kind)


def soft_extent(mask: np.ndarray) -> np.ndarray:
    """Return where an occluder with this mask is visible, including its soft edge, bool [H, W]."""
    return cv2.dilate(mask.astype(np.uint8), np.ones(_EDGE)).astype(bool)


def _sized(shape: Shape, face: np.ndarray, share: float) -> np.ndarray:
    """Return the smallest mask of a shape that hides this share of the face, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if shape(middle)[face].mean() < share:
            low = middle
        else:
            high = middle
    return shape(high)


def _shade(mask: np.ndarray) -> np.ndarray:
    """Return a factor that darkens towards the outline, so that every occluder is visible."""
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    return 1 - 0.45 * np.exp(-inside / (0.02 * mask.shape[0]))


def _box(face: np.ndarray) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a region."""
    rows, columns = np.nonzero(face.any(1))[0], np.nonzero(face.any(0))[0]
    left, top = float(columns[0]), float(rows[0])
    return left, top, float(columns[-1]) + 1 - left, float(rows[-1]) + 1 - top


def _point(rng: np.random.Generator, face: np.ndarray) -> np.ndarray:
    """Return x and y of a random pixel of a region."""
    rows, columns = np.nonzero(face)
    pick = int(rng.integers(len(rows)))
    return np.array([columns[pick], rows[pick]], np.float64)


def _turned(angle: float) -> np.ndarray:
    """Return a unit vector: angle 0 points up, positive angles to the right."""
    return np.array([math.sin(angle), -math.cos(angle)])


def _hand(rng: np.random.Generator, face: np.ndarray) -> Shape:
    """Return a hand from below or from a side, with its palm near a point of the face."""
    at, angle, mirror = _point(rng, face), float(rng.uniform(-1.1, 1.1)), float(rng.choice([-1, 1]))
    spread = rng.uniform(0.7, 1.1)

    def draw(t: float) -> np.ndarray:
        mask, palm = np.zeros(face.shape, np.uint8), t * 1.5 * max(face.shape)
        if palm < 1:
            return mask.astype(bool)
        for turn, length, width in (*_FINGERS, _THUMB):
            along = _turned(angle + mirror * spread * turn)
            root = at - 0.2 * palm * along if turn == _THUMB[0] else at + 0.3 * palm * along
            _bar(mask, root, at + palm * length * along, palm * width)
        _bar(mask, at, at - 6 * palm * _turned(angle), palm * 1.1)
        _bar(mask, at - 0.2 * palm * _turned(angle), at + 0.1 * palm * _turned(angle), palm * 1.7)
        return mask.astype(bool)

    return draw


def _bar(mask: np.ndarray, start: np.ndarray, end: np.ndarray, width: float) -> None:
    """Draw a thick line with round ends."""
    first, last = (tuple(round(v) for v in point) for point in (start, end))
    cv2.line(mask, first, last, 1, max(1, round(width)))


def _mask(rng: np.random.Generator, face: np.ndarray) -> Shape:
    """Return a cloth mask from the chin upwards, with a curved upper edge."""
    left, top, width, height = _box(face)
    bend, tilt = rng.uniform(0.1, 0.35), rng.uniform(-0.15, 0.15)
    half = width * rng.uniform(0.5, 0.65)
    y, x = np.mgrid[: face.shape[0], : face.shape[1]].astype(np.float64)
    across = (x - left - width / 2) / half
    sides = np.abs(across) < 1
    above = (top + height - y) / height + bend * (across**2) * 0.5 + tilt * across
    chin = (top + 1.06 * height - 0.35 * height * across**4) > y

    def draw(t: float) -> np.ndarray:
        return sides & chin & (above < 1.5 * t)

    return draw


def _frame(rng: np.random.Generator, face: np.ndarray) -> Shape:
    """Return a round or angular ring, which grows to the size of the face, then inwards."""
    left, top, width, height = _box(face)
    angle, power, hole = rng.uniform(-0.3, 0.3), float(rng.choice([2, 8])), rng.uniform(0.35, 0.6)
    y, x = np.mgrid[: face.shape[0], : face.shape[1]].astype(np.float64)
    x, y = x - left - width * rng.uniform(0.4, 0.6), y - top - height * rng.uniform(0.4, 0.6)
    along = (x * math.cos(angle) + y * math.sin(angle)) / (width / 2)
    across = (y * math.cos(angle) - x * math.sin(angle)) / (height / 2)
    radius = (np.abs(along) ** power + np.abs(across) ** power) ** (1 / power)

    def draw(t: float) -> np.ndarray:
        outer = 2 * t
        return (radius < outer) & (radius >= hole * outer * min(1.0, 2 - outer))

    return draw


def _plate(rng: np.random.Generator, face: np.ndarray) -> Shape:
    at, angle = _point(rng, face), float(rng.uniform(-30, 30))
    sides = np.array([1.0, rng.uniform(0.25, 0.6)]) * 12 * max(face.shape)

    def draw(t: float) -> np.ndarray:
        mask = np.zeros(face.shape, np.uint8)
        corners = cv2.boxPoints((at.tolist(), (sides * t).tolist(), angle))
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
        return mask.astype(bool)

    return draw


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return part of a photograph, or coloured noise of several scales, uint8 [size, size, 3]."""
    if rng.random() < 0.5:
        return _photograph(rng, size)
    noise = np.zeros((size, size))
    for octave in range(2, 7):
        cells = rng.standard_normal((2**octave, 2**octave))
        noise += cv2.resize(cells, (size, size), interpolation=cv2.INTER_CUBIC) * 0.75**octave
    noise *= rng.uniform(20, 50) / noise.std()
    y, x = np.mgrid[:size, :size] / size
    angle, lines = rng.uniform(0, math.pi), rng.uniform(8, 30)
    weave = np.sin(2 * math.pi * lines * (x * math.cos(angle) + y * math.sin(angle)))
    noise += weave * rng.uniform(0, 25)
    colour = rng.uniform(40, 215, 3)
    return np.clip(noise[..., None] * rng.uniform(0.6, 1.0, 3) + colour, 0, 255).astype(np.uint8)


def _photograph(rng: np.random.Generator, size: int) -> np.ndarray:
    photograph = np.asarray(getattr(skimage.data, str(rng.choice(PHOTOGRAPHS)))())
    if photograph.ndim == 2:
        photograph = photograph[..., None].repeat(3, 2)
    side = int(rng.uniform(0.5, 1.0) * min(photograph.shape[:2]))
    top = int(rng.integers(photograph.shape[0] - side + 1))
    left = int(rng.integers(photograph.shape[1] - side + 1))
    part = photograph[top : top + side, left : left + side, :3]
    return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)


def _print(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return lines of letters on one colour, uint8 [size, size, 3]."""
    paper = rng.uniform(120, 250, 3)
    ink = rng.uniform(0, 90, 3)
    if rng.random() < 0.5:
        paper, ink = ink, paper
    sheet = np.full((size, size, 3), paper.round(), np.uint8)
    scale = size / 256 * rng.uniform(0.5, 1.0)
    pitch = round(32 * scale)
    letters = np.array(list("ABCDEFGHIKLMNOPRSTUVWXYZ 0123456789"))
    for y in range(pitch, size + pitch, pitch):
        line = "".join(rng.choice(letters, 40))
        colour = tuple(int(c) for c in ink.round())
        thickness = max(1, round(2.5 * scale))
        cv2.putText(sheet, line, (0, y), cv2.FONT_HERSHEY_DUPLEX, scale, colour, thickness)
    turn = cv2.getRotationMatrix2D((size / 2, size / 2), float(rng.uniform(-30, 30)), 1.3)
    return np.asarray(cv2.warpAffine(sheet, turn, (size, size), borderMode=cv2.BORDER_REFLECT))
