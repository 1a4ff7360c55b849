"""Image metrics: pure functions of 8-bit pictures, error maps and masks.

Pictures are compared as they are stored: 8 bits, converted to [-1, 1]. `part` limits a metric to
some pixels (bool [H, W]); None is the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

# A part smaller than this share of the image has no rows: a few pixels say nothing about it.
MIN_SHARE = 0.005
_SSIM_BORDER = 3

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
    """mse, psnr, psnr_ganinverter and ssim of uint8 pictures for each of `parts`."""
    similarity = ssim_map(source, image)
    values: dict[str, float] = {}
    for suffix, part in parts.items():
        error = mse(source, image, part)
        values[f"psnr{suffix}"] = _decibels(4, error)
        values[f"psnr_ganinverter{suffix}"] = _decibels(2, error)
        values[f"mse{suffix}"] = error
        values[f"ssim{suffix}"] = ssim(similarity, part)
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
