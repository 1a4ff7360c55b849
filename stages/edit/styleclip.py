"""Global directions of StyleCLIP: edits in StyleSpace towards a text, from published files.

Patashnik et al., "StyleCLIP: Text-Driven Manipulation of StyleGAN Imagery" (arXiv 2103.17249),
section 6. CLIP itself is not needed for an edit, only the features of two texts, which `dhr-batch
edits text-features` writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dhr_batch.stages.edit import array_files
from dhr_batch.stages.edit.direction_files import DAMAGED, DirectionError, digest
from dhr_batch.stages.edit.stylespace import (
    PUBLISHED,
    StyleOffsets,
    check_published,
    style_widths,
)
from dhr_batch.stages.networks.generators.generator import Generator

FEATURES = 512
# The layers whose channels were measured: convolutions up to 128 px, without image layers.
LAYERS = tuple(i for i in range(17) if i % 3 != 1)
CHANNELS = sum(PUBLISHED[i] for i in LAYERS)


class GlobalDirection(StyleOffsets):
    """Offsets of the channels that CLIP finds relevant for the difference of two texts.

    Args:
        name: Name of the edit.
        target, neutral: Features of the texts, [512].
        relevance: `fs3`, [5376, 512].
        std: Standard deviations of all 26 layers.
        beta: See `StyleclipOptions`.

    Raises:
        DirectionError: No channel is relevant enough, or the texts are the same.
    """

    def __init__(
        self,
        name: str,
        target: np.ndarray,
        neutral: np.ndarray,
        relevance: np.ndarray,
        std: Sequence[np.ndarray],
        beta: float,
    ) -> None:
        self.name, self.std = name, std
        parts = [target, neutral, relevance, np.concatenate(std), np.array([beta])]
        text = " ".join(["styleclip", *map(digest, parts)])
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        try:
            self.weights = channel_weights(target, neutral, relevance, beta)
        except ValueError as error:
            raise DirectionError(f"{name}: {error}", "choose a smaller beta or other texts") from (
                error
            )

    def fit(self, generator: Generator) -> None:
        check_published(generator, "fs3 of StyleCLIP")
        layers, device = list(style_widths(generator)), generator.w_mean.device
        ends = np.cumsum([PUBLISHED[i] for i in LAYERS])[:-1]
        self.offsets = {}
        for i, weights in zip(LAYERS, np.split(self.weights, ends), strict=True):
            if weights.any():
                offset = torch.from_numpy((weights * self.std[i]).astype(np.float32))
                self.offsets[f"{layers[i]}.style"] = offset[None].to(device)


def channel_weights(
    target: np.ndarray, neutral: np.ndarray, relevance: np.ndarray, beta: float
) -> np.ndarray:
    """Return the offsets of channels towards a text, in standard deviations of each.

    ``r = relevance (t - n) / |t - n|`` for unit features t and n; r is 0 where ``|r| < beta``, and
    its largest absolute value is scaled to 1.

    Args:
        target, neutral: Features of the texts, [512].
        relevance: How each channel changes the features of pictures, unit rows, [C, 512].
        beta: The threshold.

    Returns:
        Offsets, float64 [C].

    Raises:
        ValueError: The texts have the same features, or no channel reaches the threshold.
    """
    t, n = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64)) for v in (target, neutral))
    length = np.linalg.norm(t - n)
    if length < 1e-6:
        raise ValueError("target and neutral text have the same features")
    r = relevance.astype(np.float64) @ ((t - n) / length)
    largest = np.abs(r).max()
    if largest < beta or largest == 0:
        raise ValueError(f"the most relevant channel reaches {largest:.3f}, less than beta {beta}")
    return np.where(np.abs(r) < beta, 0, r) / largest


def read_features(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of target and neutral text in an .npz file, [512] each.

    Raises:
        DirectionError: The file is missing, damaged or another one.
    """
    way = "write it with: dhr-batch edits text-features"
    what = f"{path}: target and neutral must be finite features of shape [{FEATURES}]"
    check = _shape((FEATURES,), what, way)
    try:
        found = [array_files.read_npz(path, name, check) for name in ("target", "neutral")]
    except DirectionError:
        raise
    except DAMAGED as error:
        raise DirectionError(f"{path} does not hold features of two texts: {error}", way) from error
    for value in found:
        if not np.isfinite(value).all() or not value.any():
            raise DirectionError(f"{what} that are not zero", way)
    return np.asarray(found[0], np.float32), np.asarray(found[1], np.float32)


def read_relevance(path: Path) -> np.ndarray:
    """Return the relevance of channels in a file `fs3.npy`, float32 [5376, 512].

    Raises:
        DirectionError: The file is missing, damaged or another one.
    """
    way = "give fs3.npy of StyleCLIP for FFHQ"
    what = f"{path} must hold finite numbers of shape [{CHANNELS}, {FEATURES}]"
    try:
        found = array_files.read_npy(path, _shape((CHANNELS, FEATURES), what, way))
    except DirectionError:
        raise
    except DAMAGED as error:
        raise DirectionError(f"{path} does not hold the relevance of channels: {error}", way) from (
            error
        )
    if not np.isfinite(found).all():
        raise DirectionError(what, way)
    return np.asarray(found, np.float32)


def _shape(wanted: tuple[int, ...], what: str, way: str) -> array_files.Check:
    def check(shape: tuple[int, ...], _: np.dtype) -> None:
        if shape != wanted:
            raise DirectionError(f"{what}, not {list(shape)}", way)

    return check
