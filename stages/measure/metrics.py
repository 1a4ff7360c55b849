"""Image metrics as pure functions of 8-bit pictures, error maps and masks.

Pictures are compared as they are stored: 8 bits, converted to [-1, 1]. A part limits a metric to
the pixels that are true in a mask, bool [H, W]; None means the whole picture. Pixels are compared
in torch, those of all pictures of an image at once, so that a GPU does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# Parts below this share of the image are not measured, because a few pixels mean nothing.
MIN_SHARE = 0.005
# The metrics of `pixel_values`, from which the others follow.
PIXEL_VALUES = ("mse", "ssim", "ms_ssim", "change")
# Windows of SSIM and of MS-SSIM, a Gaussian with a standard deviation of 1.5.
_BOX = (1 / 7,) * 7
_bell = [math.exp(-((place - 5) ** 2) / (2 * 1.5**2)) for place in range(11)]
_GAUSSIAN = tuple(value / sum(_bell) for value in _bell)
# Exponents of the five scales of MS-SSIM, finest first (Wang et al., 2003).
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_STABLE = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
# Pictures that a GPU compares at once have at most this many pixels together.
_MOST_PIXELS = 2**21

Part = np.ndarray | None


def levels(pictures: Tensor) -> Tensor:
    """Convert uint8 [B, H, W, 3] to the levels 0..255, [B, 3, H, W], in double precision.

    Apple's GPUs have no double precision; there the result is float32.
    """
    kind = torch.float32 if pictures.device.type == "mps" else torch.float64
    return pictures.permute(0, 3, 1, 2).to(kind).contiguous()


def weights_of(parts: Mapping[str, Part], shape: tuple[int, int]) -> np.ndarray:
    """Return the parts as bool masks [P, H, W]; None is the whole picture."""
    whole = np.ones(shape, bool)
    return np.stack([whole if part is None else part for part in parts.values()])


def pixel_values(source: Tensor, images: Tensor, before: int, weights: Tensor) -> Tensor:
    """Return the values of `PIXEL_VALUES` of each picture in each part, [N, P, 4].

    All tensors are on one device, and nothing waits for it.

    Args:
        source: The photograph, uint8 [1, H, W, 3].
        images: Pictures to compare with it, uint8 [N, H, W, 3].
        before: Index of the picture from which `change` is measured.
        weights: Parts, bool [P, H, W].
    """
    reference, origin = Reference(levels(source)), levels(images[before : before + 1])
    weights = weights.to(origin.dtype)
    at_once = pictures_at_once(images.device.type, weights[0].numel())
    found = []
    for chunk in images.split(at_once):
        y = levels(chunk)
        values = (
            weighted_mean((y - reference.x).square(), weights).mean(1) / 127.5**2,
            ssim(reference.ssim_map(y), weights),
            ms_ssim(reference.ms_ssim_maps(y), weights),
            weighted_mean((y - origin).abs(), weights).mean(1) / 127.5,
        )
        found.append(torch.stack(torch.broadcast_tensors(*values), -1))
    return torch.cat(found)


def pictures_at_once(device: str, pixels: int) -> int:
    """Return how many pictures of so many pixels are compared at once on a type of device.

    One picture fits into the cache of a CPU. A GPU gets as many as keep the memory small.
    """
    return 1 if device == "cpu" else max(1, _MOST_PIXELS // pixels)


def pixel_metrics(values: np.ndarray, parts: Mapping[str, Part]) -> dict[str, float]:
    """Return the metrics of one picture by name, from `pixel_values` [P, 4].

    These are psnr, psnr_ganinverter, mse, ssim and ms_ssim of each part, and `change_in` and
    `change_out`, mean absolute differences on [-1, 1]. What a part is too small for is left out.

    ``psnr`` is ``10 log10(4 / MSE)`` in dB: values in [-1, 1] have a peak of 2. It is infinite for
    equal pictures. ``psnr_ganinverter`` is ``10 log10(2 / MSE)``, 3.01 dB less, as in that
    benchmark.
    """
    named: dict[str, float] = {}
    for (suffix, part), row in zip(parts.items(), values.tolist(), strict=True):
        error, similarity, multiscale, moved = row
        named[f"psnr{suffix}"] = _decibels(4, error)
        named[f"psnr_ganinverter{suffix}"] = _decibels(2, error)
        named[f"mse{suffix}"] = error
        named[f"ssim{suffix}"] = similarity
        named[f"ms_ssim{suffix}"] = multiscale
        if part is not None:
            named[f"change{suffix}"] = moved
    return {name: value for name, value in named.items() if not math.isnan(value)}


def _decibels(peak: float, error: float) -> float:
    return 10 * math.log10(peak / error) if error else math.inf


def weighted_mean(x: Tensor, weights: Tensor) -> Tensor:
    """Return the means of [N, C, h, w] under weights [P, h, w], [N, C, P]; NaN without weight."""
    flat = weights.flatten(1)
    return x.flatten(2) @ flat.T / flat.sum(1)


class Reference:
    """A picture that others are compared with. What depends on it alone is computed once.

    Args:
        x: Levels 0..255, [1, 3, H, W].
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._box = _smooth(torch.cat((x, x * x)), _BOX)
        self._scales: list[tuple[Tensor, Tensor]] = []
        # The coarsest scale of smaller pictures is smaller than the window.
        if min(x.shape[2:]) > (len(_GAUSSIAN) - 1) * 2 ** (len(_SCALES) - 1):
            for scale in range(len(_SCALES)):
                x = _halved(x) if scale else x
                self._scales.append((x, _smooth(torch.cat((x, x * x)), _GAUSSIAN)))

    def ssim_map(self, y: Tensor) -> Tensor:
        """Return the structural similarity at each pixel without a border of 3 px, [N, 1, h, w].

        Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity"
        (2004), with the defaults of scikit-image: uniform window of 7x7 pixels, range 255, mean of
        channels.
        """
        mean_x, mean_y, spread, shared = _moments(self.x, self._box, y, _BOX)
        # The variance of a sample is larger than that of its pixels.
        count = len(_BOX) ** 2
        spread, shared = (v * (count / (count - 1)) for v in (spread, shared))
        similarity = (2 * shared + _STABLE[1]) / (spread + _STABLE[1])
        similarity *= _luminance(mean_x, mean_y)
        return similarity.mean(1, keepdim=True)

    def ms_ssim_maps(self, y: Tensor) -> list[Tensor]:
        """Return the similarity at five scales, [N, 3, r, r] each.

        Wang et al., "Multiscale Structural Similarity for Image Quality Assessment" (2003): at the
        four finer scales ``(2 cov + C2) / (var_x + var_y + C2)``, at the coarsest all of SSIM. The
        window is a Gaussian of 11 px (sigma 1.5) inside the picture, scales are 2x2 means, and
        channels are independent. Empty for pictures below 161 px.
        """
        maps = []
        for scale, (x, known) in enumerate(self._scales):
            y = _halved(y) if scale else y
            mean_x, mean_y, spread, shared = _moments(x, known, y, _GAUSSIAN)
            maps.append((2 * shared + _STABLE[1]) / (spread + _STABLE[1]))
        if maps:
            maps[-1] *= _luminance(mean_x, mean_y)
        return maps


def ssim(similarity: Tensor, weights: Tensor) -> Tensor:
    """Return the means of an `ssim_map` in parts [P, H, W], [N, P], as scikit-image does.

    NaN if a part lies entirely in the border.
    """
    edge = len(_BOX) // 2
    return weighted_mean(similarity, weights[:, edge:-edge, edge:-edge])[:, 0]


def ms_ssim(maps: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the product of the means of `ms_ssim_maps`, each to its power, as mean of channels.

    Means below 0 count as 0. Each window is weighted by the share of the part in the pixel at its
    centre. NaN without maps, and if the part has no window at some scale.

    Args:
        maps: Similarities at each scale.
        weights: Parts, [P, H, W].

    Returns:
        [N, P]; a single NaN, [1, 1], without maps.
    """
    if not maps:
        return weights.new_full((1, 1), math.nan)
    edge = len(_GAUSSIAN) // 2
    powers = []
    for similarity, power in zip(maps, _SCALES, strict=True):
        means = weighted_mean(similarity, weights[:, edge:-edge, edge:-edge])
        powers.append(means.clamp(min=0) ** power)
        weights = _halved(weights[:, None])[:, 0]
    return torch.stack(powers).prod(0).mean(1)


def _moments(x: Tensor, known: Tensor, y: Tensor, taps: Sequence[float]) -> tuple[Tensor, ...]:
    """Return the means of x and y, the sum of their variances, and their covariance.

    Args:
        x: One picture, [1, 3, H, W].
        known: Means of x and of its square, [2, 3, h, w].
        y: The others, [N, 3, H, W].
        taps: The window.
    """
    mean_x, square_x = known.split(1)
    mean_y, square_y, product = _smooth(torch.cat((y, y * y, x * y)), taps).chunk(3)
    spread = square_x + square_y - mean_x**2 - mean_y**2
    return mean_x, mean_y, spread, product - mean_x * mean_y


def _luminance(mean_x: Tensor, mean_y: Tensor) -> Tensor:
    return (2 * mean_x * mean_y + _STABLE[0]) / (mean_x**2 + mean_y**2 + _STABLE[0])


def _halved(x: Tensor) -> Tensor:
    """Return 2x2 means of [B, C, H, W]. An odd side is padded by 0 at its start, as published."""
    height, width = x.shape[2:]
    x = F.pad(x, (width % 2, 0, height % 2, 0))
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def _smooth(x: Tensor, taps: Sequence[float]) -> Tensor:
    """Return means of [B, C, H, W] under a separable, symmetric window inside the picture.

    A sum of shifted pictures, because torch has no fast convolution in double precision on CPUs.
    """
    half = len(taps) // 2
    for axis in (3, 2):
        size = x.shape[axis] - 2 * half
        shifted = [x.narrow(axis, place, size) for place in range(len(taps))]
        total = shifted[half] * taps[half]
        for place in range(half):
            total.add_(shifted[place] + shifted[-1 - place], alpha=taps[place])
        x = total
    return x


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
