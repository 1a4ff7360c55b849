"""Image metrics as pure functions of 8-bit pictures, error maps and masks.

Pictures are compared as they are stored: 8 bits, converted to [-1, 1]. The argument `part` limits a
metric to the pixels that are true in a mask, bool [H, W]; None means the whole picture.
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

# Parts below this share of the image are not measured, because a few pixels mean nothing.
MIN_SHARE = 0.005
_SSIM_BORDER = 3
# Exponents of the five scales of MS-SSIM, finest first (Wang et al., 2003).
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_STABLE = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)

Part = np.ndarray | None


def to_unit(image: np.ndarray) -> np.ndarray:
    """Convert uint8 0..255 to float64 in [-1, 1]."""
    return image.astype(np.float64) / 127.5 - 1


def mse(a: np.ndarray, b: np.ndarray, part: Part = None) -> float:
    """Return the mean squared difference of uint8 pictures [H, W, 3] on [-1, 1]."""
    squares = np.square(to_unit(a) - to_unit(b))
    return float(squares.mean() if part is None else squares[part].mean())


def psnr(a: np.ndarray, b: np.ndarray, part: Part = None) -> float:
    """Return the peak signal-to-noise ratio in dB of uint8 pictures [H, W, 3].

    ``10 log10(4 / MSE)``: values in [-1, 1] have a peak of 2. Infinite for equal pictures.

    Example:
        >>> black, grey = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 51, np.uint8)
        >>> round(psnr(black, grey), 2)
        13.98
    """
    return _decibels(4, mse(a, b, part))


def psnr_ganinverter(a: np.ndarray, b: np.ndarray, part: Part = None) -> float:
    """Return ``10 log10(2 / MSE)`` as the GANInverter benchmark does, 3.01 dB below `psnr`."""
    return _decibels(2, mse(a, b, part))


def _decibels(peak: float, error: float) -> float:
    return 10 * math.log10(peak / error) if error else math.inf


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the structural similarity of uint8 pictures [H, W, 3] at each pixel, [H, W].

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004),
    with the defaults of scikit-image: uniform window of 7x7 pixels, range 255, mean of channels.
    """
    _, full = structural_similarity(a, b, channel_axis=2, data_range=255, full=True)
    return full.mean(2)


def ssim(similarity: np.ndarray, part: Part = None) -> float:
    """Return the mean of an `ssim_map` without its border of 3 px, as scikit-image does.

    NaN if the part lies entirely in the border.
    """
    inner = (slice(_SSIM_BORDER, -_SSIM_BORDER),) * 2
    values = similarity[inner] if part is None else similarity[inner][part[inner]]
    return float(values.mean()) if values.size else math.nan


def ms_ssim_maps(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Return the similarity of uint8 pictures [R, R, 3] at five scales, float64 [r, r, 3] each.

    Wang et al., "Multiscale Structural Similarity for Image Quality Assessment" (2003): at the four
    finer scales ``(2 cov + C2) / (var_x + var_y + C2)``, at the coarsest all of SSIM. The window is
    a Gaussian of 11 px (sigma 1.5) inside the picture, scales are 2x2 means, and channels are
    independent. Empty for pictures below 161 px, whose coarsest scale is smaller than the window.
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
    """Return the product of the means of `ms_ssim_maps`, each to its power, as mean of channels.

    Means below 0 count as 0. With a part, each window is weighted by the share of the part in the
    pixel at its centre. NaN without maps, and if the part has no window at some scale.
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
    """Return 2x2 means. An odd side is padded by 0 at its start, as in published code."""
    odd = [(side % 2, 0) for side in x.shape[:2]]
    x = np.pad(x, odd + [(0, 0)] * (x.ndim - 2))
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def _smooth(x: np.ndarray) -> np.ndarray:
    """Return means of [H, W, 3] under a Gaussian window that lies inside the picture."""
    taps = cv2.getGaussianKernel(_WINDOW, _SIGMA)
    inner = slice(_WINDOW // 2, -(_WINDOW // 2))
    return cv2.sepFilter2D(x, cv2.CV_64F, taps, taps)[inner, inner]


def perceptual_distance(maps: Sequence[Tensor], part: Tensor | None = None) -> Tensor:
    """Return the sum over layers of the means of error maps, [B].

    Args:
        maps: Error maps of the layers, [B, 1, h, w].
        part: Weights of pixels in [0, 1], [B, 1, H, W]; layers are weighted by their block means.
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
    """Return the cosine of the angle between two descriptors.

    Example:
        >>> round(cosine(np.array([1.0, 0.0]), np.array([3.0, 4.0])), 2)
        0.6
    """
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def parts_of(mask: np.ndarray) -> dict[str, Part]:
    """Return the parts of a picture by the suffix of their metrics.

    The whole picture has the suffix "". The in-domain part ``_in`` and the out-of-domain part
    ``_out`` are left out if they are smaller than `MIN_SHARE`.
    """
    parts: dict[str, Part] = {"": None}
    for suffix, part in (("_in", mask), ("_out", ~mask)):
        if part.mean() >= MIN_SHARE:
            parts[suffix] = part
    return parts


def pixel_metrics(
    source: np.ndarray, image: np.ndarray, parts: Mapping[str, Part]
) -> dict[str, float]:
    """Return psnr, psnr_ganinverter, mse, ssim and ms_ssim of uint8 pictures for each part."""
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
    """Return `change_in` and `change_out`, mean absolute differences on [-1, 1] in these parts."""
    difference = np.abs(to_unit(after) - to_unit(before))
    return {f"change{s}": float(difference[p].mean()) for s, p in parts.items() if p is not None}


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Return a uint8 picture [R, R, 3] at no more than `size` px (bilinear with antialiasing)."""
    if image.shape[0] <= size:
        return image
    small = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small)


def shrink_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Return a bool mask [R, R] at no more than `size` px, true where half of a block is true."""
    if mask.shape[0] <= size:
        return mask
    levels = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(levels.resize((size, size), Image.Resampling.BOX)) >= 128
