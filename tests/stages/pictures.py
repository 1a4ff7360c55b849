"""Pictures for tests of metrics."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def grey(level: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def blurred(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with structure at all scales, and a version without the finest."""
    picture = Image.fromarray(noise(seed, 8)).resize((size, size), Image.Resampling.BICUBIC)
    sharp = np.asarray(picture) // 2 + noise(seed + 1, size) // 2
    small = Image.fromarray(sharp).resize((size // 3, size // 3))
    return sharp, np.asarray(small.resize((size, size)))
