"""Soft masks of pictures: values for each pixel, in 0..1, from steps and smoothing."""

from __future__ import annotations

import cv2
import numpy as np

# The side in pixels of the pictures from which faces are parsed.
WORK_SIZE = 256
# Radius of the guided filter in pixels of `WORK_SIZE`.
_GUIDED_RADIUS = 4

# Values for each pixel, [H, W] or, for colours, [H, W, 3].
Map = np.ndarray


def sigmoid(x: Map) -> Map:
    """Return the logistic function of values, float32."""
    return (1 / (1 + np.exp(-np.clip(x, -30, 30)))).astype(np.float32)


def above(x: Map, middle: float, width: float) -> Map:
    """Return a soft step from 0 to 1, which is 0.5 at `middle`."""
    return sigmoid((x - middle) / width)


def below(x: Map, middle: float | Map, width: float) -> Map:
    """Return a soft step from 1 to 0, which is 0.5 at `middle`."""
    return sigmoid((middle - x) / width)


def smooth(guide: Map, mask: Map, eps: float = 4e-3) -> Map:
    """Smooth `mask` but keep the edges of `guide` (guided filter; He, Sun and Tang, 2010)."""

    def mean(x: Map) -> Map:
        return cv2.blur(x, (2 * _GUIDED_RADIUS + 1, 2 * _GUIDED_RADIUS + 1))

    m_g, m_p = mean(guide), mean(mask)
    a = (mean(guide * mask) - m_g * m_p) / (mean(guide * guide) - m_g * m_g + eps)
    return np.clip(mean(a) * guide + mean(m_p - a * m_g), 0, 1)
