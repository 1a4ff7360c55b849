"""Image metrics: pure functions of 8-bit pictures, error maps and masks.

Pictures are compared as they are stored: 8 bits, converted to [-1, 1]. `part` limits a metric to
some pixels (bool [H, W]); None is the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

# A part smaller than this share of the image has no rows: a few pixels say nothing about it.
MIN_SHARE = 0.005
_SSIM_BORDER = 3
# Exponents of the five scales of MS-SSIM, the finest first.
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_STABLE = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)

Part = np.ndarray | None


def to_unit(image: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float64 in [-1, 1]."""
    return image.astype(np.float64) / 127.5 - 1


def mse(a: np.ndarray, b: np.ndarray, part: Part = None) -> float:
    """Mean squared difference of uint8 [H, W, 3] pictures on [-1, 1]."""
    squares = np.square(to_unit(a) - to_unit(b))
    return float(squares.mean() if part is None else squares[part].mean())


def psnr(a: np.ndarray, b: np.ndarray, part: Part = None) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(4 / MSE): peak 2 on [-1, 1]. Infinite if equal."""
    return _decibels(4, mse(a, b, part))


def psnr_ganinverter(a: np.ndarray, b: np.ndarray, part: Part = None) -> float:
    """10 log10(2 / MSE), as printed by the GANInverter benchmark: 3.01 dB under `psnr`."""
    return _decibels(2, mse(a, b, part))


def _decibels(peak: float, error: float) -> float:
    return 10 * math.log10(peak / error) if error else math.inf


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of uint8 [H, W, 3] pictures, channel mean, [H, W].

    Wang et al. 2004 with scikit-image's defaults: uniform 7x7 window, dynamic range 255.
    """
    _, full = structural_similarity(a, b, channel_axis=2, data_range=255, full=True)
    return full.mean(2)


def ssim(similarity: np.ndarray, part: Part = None) -> float:
    """Mean of an `ssim_map` without its 3 px border, as scikit-image takes it.

    Nan when `part` lies in the border entirely.
    """
    inner = (slice(_SSIM_BORDER, -_SSIM_BORDER),) * 2
    values = similarity[inner] if part is None else similarity[inner][part[inner]]
    return float(values.mean()) if values.size else math.nan


def ms_ssim_maps(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Similarity of uint8 [R, R, 3] pictures at five scales, float64 [r, r, 3] each.

    Wang et al. 2003, "Multiscale structural similarity": contrast and structure at the four finer
    scales, all of SSIM at the coarsest; Gaussian window of 11 px (sigma 1.5) inside the picture
    only, scales by 2x2 means, each channel by itself. Empty for pictures under 161 px, in which
    the coarsest scale has no room for a window.
    """
    if min(a.shape[:2]) <= (_WINDOW - 1) * 2 ** (len(_SCALES) - 1):
        return []
    x, y = a.astype(np.float64), b.astype(np.float64)
    maps = []
    for scale in range(len(_SCALES)):
        if scale:
            x, y = _halved(x), _halved(y)
        mean_x, mean_y = _smooth(x), _smooth(y)
        spread = _smooth(x * x + y * y) - mean_x**2 - mean_y**2
        shared = _smooth(x * y) - mean_x * mean_y
        similarity = (2 * shared + _STABLE[1]) / (spread + _STABLE[1])
        if scale == len(_SCALES) - 1:
            squares = mean_x**2 + mean_y**2
            similarity *= (2 * mean_x * mean_y + _STABLE[0]) / (squares + _STABLE[0])
        maps.append(similarity)
    return maps


def ms_ssim(maps: Sequence[np.ndarray], part: Part = None) -> float:
    """Product of the means of `ms_ssim_maps`, each to its published power; channel mean.

    Means below 0 count as 0. `part` weighs each window by the share of the part in the pixel
    under its centre. Nan without maps, and where the part has no centre of a window at some scale.
    """
    if not maps:
        return math.nan
    weight = None if part is None else part.astype(np.float64)
    inner = slice(_WINDOW // 2, -(_WINDOW // 2))
    value = np.ones(3)
    for similarity, power in zip(maps, _SCALES, strict=True):
        if weight is None:
            mean = similarity.mean((0, 1))
        else:
            centres = weight[inner, inner, None]
            if not centres.any():
                return math.nan
            mean = (similarity * centres).sum((0, 1)) / centres.sum()
            weight = _halved(weight)
        value *= np.maximum(mean, 0) ** power
    return float(value.mean())


def _halved(x: np.ndarray) -> np.ndarray:
    """2x2 means; an odd side begins with a border of 0, as in the published implementations."""
    odd = [(side % 2, 0) for side in x.shape[:2]]
    x = np.pad(x, odd + [(0, 0)] * (x.ndim - 2))
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def _smooth(x: np.ndarray) -> np.ndarray:
    """Means of [H, W, 3] under a Gaussian window that lies inside the picture."""
    taps = cv2.getGaussianKernel(_WINDOW, _SIGMA)
    inner = slice(_WINDOW // 2, -(_WINDOW // 2))
    return cv2.sepFilter2D(x, cv2.CV_64F, taps, taps)[inner, inner]


def perceptual_distance(maps: Sequence[Tensor], part: Tensor | None = None) -> Tensor:
    """Sum over layers of the means of error maps [B, 1, h, w], [B].

    part: [B, 1, H, W] weights in [0, 1]; each layer's mean is weighted by their block means.
    """
    means = []
    for m in maps:
        if part is None:
            means.append(m.mean((1, 2, 3)))
        else:
            weight = F.adaptive_avg_pool2d(part, (m.shape[2], m.shape[3]))
            means.append((m * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)))
    return torch.stack(means).sum(0)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two descriptors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def parts_of(mask: np.ndarray) -> dict[str, Part]:
    """Suffix -> part: the whole picture, and ``_in`` and ``_out`` where they reach `MIN_SHARE`."""
    parts: dict[str, Part] = {"": None}
    for suffix, part in (("_in", mask), ("_out", ~mask)):
        if part.mean() >= MIN_SHARE:
            parts[suffix] = part
    return parts


def pixel_metrics(
    source: np.ndarray, image: np.ndarray, parts: Mapping[str, Part]
) -> dict[str, float]:
    """psnr, psnr_ganinverter, mse, ssim and ms_ssim of uint8 pictures for each of `parts`."""
    similarity, scales = ssim_map(source, image), ms_ssim_maps(source, image)
    values: dict[str, float] = {}
    for suffix, part in parts.items():
        error = mse(source, image, part)
        values[f"psnr{suffix}"] = _decibels(4, error)
        values[f"psnr_ganinverter{suffix}"] = _decibels(2, error)
        values[f"mse{suffix}"] = error
        values[f"ssim{suffix}"] = ssim(similarity, part)
        values[f"ms_ssim{suffix}"] = ms_ssim(scales, part)
    return {name: value for name, value in values.items() if not math.isnan(value)}


def change(before: np.ndarray, after: np.ndarray, parts: Mapping[str, Part]) -> dict[str, float]:
    """`change_in`, `change_out`: mean absolute difference on [-1, 1] in each part of the mask."""
    difference = np.abs(to_unit(after) - to_unit(before))
    return {f"change{s}": float(difference[p].mean()) for s, p in parts.items() if p is not None}


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """A uint8 picture [R, R, 3] at `size` px if it is larger (Pillow's antialiased bilinear)."""
    if image.shape[0] <= size:
        return image
    small = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small)


def shrink_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A bool mask [R, R] at `size` px if it is larger: true where at least half of a block is."""
    if mask.shape[0] <= size:
        return mask
    levels = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(levels.resize((size, size), Image.Resampling.BOX)) >= 128
