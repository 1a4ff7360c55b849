"""Geometry of the FFHQ crop (Karras et al., 2019; the published recipe of the dataset).

A quad is float64 [4, 2]: the corners (x, y) of the crop in pixels of the upright photograph, in the
order top-left, bottom-left, bottom-right, top-right. It may be rotated and may extend beyond the
photograph. With the vector e from eye to eye and q from the eyes to the mouth, its half axis x has
the direction of ``e - rot90(q)`` and the length ``max(2 |e|, 1.8 |q|)``, and its centre is
``eyes + 0.1 q``.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

# Corners of a crop in units of its half axes.
_CORNERS = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)], np.float64)
# Medians over 13 published crops and 39 photographs with dlib's landmarks, none occluded.
_MTCNN_SHIFT, _MTCNN_SCALE = (0.0046, -0.0014), 1.018


def quad_from_points(
    eye_left: np.ndarray, eye_right: np.ndarray, mouth_left: np.ndarray, mouth_right: np.ndarray
) -> np.ndarray:
    """Return the quad from eye centres and mouth corners (x, y); left is left in the image."""
    eye_left, eye_right = np.asarray(eye_left, np.float64), np.asarray(eye_right, np.float64)
    eyes = (eye_left + eye_right) * 0.5
    eye_to_eye = eye_right - eye_left
    mouth = (np.asarray(mouth_left, np.float64) + np.asarray(mouth_right, np.float64)) * 0.5
    eye_to_mouth = mouth - eyes
    # The axis is the mean of both directions, so that a turned head stays upright.
    right = eye_to_eye - _down(eye_to_mouth)
    right = right / np.hypot(*right)
    right = right * max(np.hypot(*eye_to_eye) * 2.0, np.hypot(*eye_to_mouth) * 1.8)
    centre = eyes + eye_to_mouth * 0.1
    return centre + _CORNERS @ np.stack([right, _down(right)])


def quad_from_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Return the quad from 68 landmarks [68, 2] of the iBUG scheme."""
    points = np.asarray(landmarks, np.float64)
    return quad_from_points(points[36:42].mean(0), points[42:48].mean(0), points[48], points[54])


def quad_from_mtcnn(points: np.ndarray) -> np.ndarray:
    """Return the quad from the five points of MTCNN, [5, 2]: eyes, nose and mouth corners.

    Of each pair, the point on the left of the image comes first. The points of MTCNN differ
    systematically from the 68 landmarks. A fixed shift, in sides of the quad, and a fixed scale
    undo the median difference of the two quads.
    """
    quad = quad_from_points(points[0], points[1], points[3], points[4])
    centre, half_right, half_down = quad.mean(0), (quad[3] - quad[0]) / 2, (quad[1] - quad[0]) / 2
    centre = centre - 2 * (_MTCNN_SHIFT[0] * half_right + _MTCNN_SHIFT[1] * half_down)
    return centre + _CORNERS @ np.stack([half_right, half_down]) / _MTCNN_SCALE


def _down(right: np.ndarray) -> np.ndarray:
    """Return the axis a quarter turn clockwise from `right`, as seen in the image."""
    return np.array([-right[1], right[0]])


def full_quad(width: int, height: int) -> np.ndarray:
    """Return the quad that covers a whole image."""
    return np.array([(0, 0), (0, height), (width, height), (width, 0)], np.float64)


def quad_side(quad: np.ndarray) -> float:
    """Return the side of a quad in pixels of the photograph.

    Example:
        >>> quad_side(full_quad(512, 512))
        512.0
    """
    return float(np.hypot(*(quad[3] - quad[0])))


def outside_share(quad: np.ndarray, width: int, height: int) -> float:
    """Return the share of a quad outside the photograph, from a grid of 64 x 64 points."""
    t = (np.arange(64) + 0.5) / 64
    u, v = np.meshgrid(t, t)
    x, y = np.moveaxis(
        quad[0] + u[..., None] * (quad[3] - quad[0]) + v[..., None] * (quad[1] - quad[0]), -1, 0
    )
    return float(1 - ((x >= 0) & (x < width) & (y >= 0) & (y < height)).mean())


def crop(image: np.ndarray, quad: np.ndarray, size: int) -> np.ndarray:
    """Cut a quad out of a photograph, uint8 [H, W, 3], as uint8 [size, size, 3].

    Parts outside the photograph are filled by reflection, which fades into blur and the median
    colour.
    """
    source, local = warp_source(Image.fromarray(image), quad, size)
    # Pillow counts from the corners of pixels, landmarks count from their centres.
    corners = tuple((local + 0.5).flatten())
    square = source.transform(
        (size, size), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR
    )
    return np.array(square)


def warp_source(image: Image.Image, quad: np.ndarray, size: int) -> tuple[Image.Image, np.ndarray]:
    """Shrink, crop and pad a photograph so that the quad lies inside it at about `size` pixels.

    Returns:
        The image and the quad in its pixels.

    Raises:
        ValueError: The quad does not touch the photograph.
    """
    quad = np.asarray(quad, np.float64)
    side, shrink = quad_side(quad), _shrink(quad, size)
    if shrink > 1:
        image = image.resize(_shrunk(image.size, shrink), Image.Resampling.LANCZOS)
        quad, side = quad / shrink, side / shrink

    border = max(round(side * 0.1), 3)
    low, high = np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)
    keep_low = np.clip(low - border, 0, None)
    keep_high = np.minimum(high + border, image.size)
    if (keep_high <= keep_low).any():
        raise ValueError(f"the crop {quad.tolist()} lies outside the {image.size} photograph")
    image = image.crop((*keep_low.tolist(), *keep_high.tolist()))
    quad = quad - keep_low

    low, high = np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)
    before = np.clip(border - low, 0, None)
    after = np.clip(high - image.size + border, 0, None)
    if max(before.max(), after.max()) <= border - 4:
        return image, quad
    least = round(side * 0.3)
    before, after = np.maximum(before, least), np.maximum(after, least)
    return Image.fromarray(_pad(np.array(image), before, after, side * 0.02)), quad + before


def _shrink(quad: np.ndarray, size: int) -> int:
    return max(1, int(quad_side(quad) / size * 0.5))


def _shrunk(size: tuple[int, int], shrink: int) -> tuple[int, int]:
    return max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))


def crop_of_photograph(quad: np.ndarray, photograph: tuple[int, int], size: int) -> np.ndarray:
    """Return the map from pixels of a photograph to pixels of the crop, the inverse of `crop`.

    Args:
        quad: Corners of the crop, [4, 2].
        photograph: Width and height of the photograph.
        size: Side of the crop in pixels.

    Returns:
        float64 [3, 3], which maps the index (x, y, 1) of a pixel to an index in the crop.
    """
    quad = np.asarray(quad, np.float64)
    if np.array_equal(quad, full_quad(*photograph)):
        # Aligned photographs are resized, which counts from the corners of pixels.
        scale = size / np.array(photograph)
        return np.array(
            [[scale[0], 0, 0.5 * (scale[0] - 1)], [0, scale[1], 0.5 * (scale[1] - 1)], [0, 0, 1]]
        )
    right, down = quad[3] - quad[0], quad[1] - quad[0]
    axes = size * np.stack([right / (right @ right), down / (down @ down)])
    to_crop = np.eye(3)
    to_crop[:2, :2], to_crop[:2, 2] = axes, -axes @ quad[0] - 0.5
    shrink = _shrink(quad, size)
    if shrink == 1:
        return to_crop
    # The sides of a shrunk photograph are rounded to pixels, while the quad is only divided.
    scale = shrink * np.array(_shrunk(photograph, shrink)) / np.array(photograph)
    shift = 0.5 * (scale - shrink)
    return to_crop @ np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]], [0, 0, 1]])


def _pad(pixels: np.ndarray, before: np.ndarray, after: np.ndarray, sigma: float) -> np.ndarray:
    """Pad by reflection, `before` and `after` in (x, y) pixels; blur and fading grow outwards."""
    widths = ((before[1], after[1]), (before[0], after[0]), (0, 0))
    padded = np.pad(pixels.astype(np.float32), widths, mode="reflect")
    height, width = padded.shape[:2]
    across = _depth(width, before[0], after[0])[None, :]
    down = _depth(height, before[1], after[1])[:, None]
    depth = np.maximum(across, down)[..., None]
    reach = 2 * int(4 * sigma + 0.5) + 1
    blurred = cv2.GaussianBlur(padded, (reach, reach), sigma, borderType=cv2.BORDER_REFLECT)
    padded += (blurred - padded) * np.clip(depth * 3 + 1, 0, 1)
    padded += (np.median(padded, axis=(0, 1)) - padded) * np.clip(depth, 0, 1)
    return np.clip(np.rint(padded), 0, 255).astype(np.uint8)


def _depth(length: int, before: int, after: int) -> np.ndarray:
    """Return 1 at the outer edge, 0 at the edge of the photograph, negative inside; [length]."""
    at = np.arange(length, dtype=np.float32)
    return 1 - np.minimum(at / np.float32(before), (length - 1 - at) / np.float32(after))
