"""Geometry of the FFHQ crop (Karras et al., 2019; the dataset's published recipe).

A quad is float64 [4, 2]: the (x, y) corners top-left, bottom-left, bottom-right, top-right of the
crop, in pixels of the upright source photograph. It may be rotated and may leave the photograph.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

# Corner k of a crop in units of its half axes.
_CORNERS = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)], np.float64)
# Medians over 13 published crops and 39 photographs with dlib's landmarks, none occluded.
_MTCNN_SHIFT, _MTCNN_SCALE = (0.0046, -0.0014), 1.018


def quad_from_points(
    eye_left: np.ndarray, eye_right: np.ndarray, mouth_left: np.ndarray, mouth_right: np.ndarray
) -> np.ndarray:
    """Quad from eye centres and mouth corners, each (x, y); left is the left of the image."""
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
    """Quad from 68 landmarks [68, 2] of the iBUG scheme."""
    points = np.asarray(landmarks, np.float64)
    return quad_from_points(points[36:42].mean(0), points[42:48].mean(0), points[48], points[54])


def quad_from_mtcnn(points: np.ndarray) -> np.ndarray:
    """Quad from MTCNN's five points [5, 2]: eyes, nose, mouth corners, left of the image first.

    MTCNN puts its points systematically elsewhere than the 68 landmarks have theirs; the fixed
    shift and scale undo the median difference of the two quads, which are in parts of their side.
    """
    quad = quad_from_points(points[0], points[1], points[3], points[4])
    centre, half_right, half_down = quad.mean(0), (quad[3] - quad[0]) / 2, (quad[1] - quad[0]) / 2
    centre = centre - 2 * (_MTCNN_SHIFT[0] * half_right + _MTCNN_SHIFT[1] * half_down)
    return centre + _CORNERS @ np.stack([half_right, half_down]) / _MTCNN_SCALE


def _down(right: np.ndarray) -> np.ndarray:
    """The axis a quarter turn clockwise (as seen) from `right`."""
    return np.array([-right[1], right[0]])


def full_quad(width: int, height: int) -> np.ndarray:
    """The quad of an image that is its own crop."""
    return np.array([(0, 0), (0, height), (width, height), (width, 0)], np.float64)


def quad_side(quad: np.ndarray) -> float:
    """Side of the square in source pixels."""
    return float(np.hypot(*(quad[3] - quad[0])))


def outside_share(quad: np.ndarray, width: int, height: int) -> float:
    """Share of the quad's area that lies outside the photograph, from a grid of 64 x 64 points."""
    t = (np.arange(64) + 0.5) / 64
    u, v = np.meshgrid(t, t)
    x, y = np.moveaxis(
        quad[0] + u[..., None] * (quad[3] - quad[0]) + v[..., None] * (quad[1] - quad[0]), -1, 0
    )
    return float(1 - ((x >= 0) & (x < width) & (y >= 0) & (y < height)).mean())


def crop(image: np.ndarray, quad: np.ndarray, size: int) -> np.ndarray:
    """Cut a quad out of a photograph.

    image: uint8 [H, W, 3]. Parts outside it are filled by reflection that fades into blur and
    towards the median colour. Returns uint8 [size, size, 3].
    """
    source, local = warp_source(Image.fromarray(image), quad, size)
    # PIL counts pixel corners, landmarks count pixel centres: hence the half.
    corners = tuple((local + 0.5).flatten())
    square = source.transform(
        (size, size), Image.Transform.QUAD, corners, Image.Resampling.BILINEAR
    )
    return np.array(square)


def warp_source(image: Image.Image, quad: np.ndarray, size: int) -> tuple[Image.Image, np.ndarray]:
    """Shrink, crop and pad a photograph until the quad lies inside it at about `size` pixels.

    Returns the image and the quad in its pixels.
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
    """Where a photograph's pixels lie in the crop: the inverse of `crop`, without its filling.

    photograph: width and height. size: of the crop. Returns float64 [3, 3]; it maps (x, y, 1), the
    index of a pixel of the photograph, to an index in the crop.
    """
    quad = np.asarray(quad, np.float64)
    if np.array_equal(quad, full_quad(*photograph)):
        # Aligned photographs are resized, and a resize counts from the corners of pixels.
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
    # A shrunk photograph counts pixels of its own, while the quad is only divided.
    scale = shrink * np.array(_shrunk(photograph, shrink)) / np.array(photograph)
    shift = 0.5 * (scale - shrink)
    return to_crop @ np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]], [0, 0, 1]])


def _pad(pixels: np.ndarray, before: np.ndarray, after: np.ndarray, sigma: float) -> np.ndarray:
    """Reflect by `before` and `after` (x, y) pixels; blur and fade grow with the distance."""
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
    """1 at the outer edge, 0 where the photograph starts, negative inside. float32 [length]."""
    at = np.arange(length, dtype=np.float32)
    return 1 - np.minimum(at / np.float32(before), (length - 1 - at) / np.float32(after))
