"""Colours of a face in CIE L*a*b*: that of its skin, and histograms of those of a material."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dhr_batch.stages.networks.parsers.face_geometry import Geometry
from dhr_batch.stages.networks.parsers.soft_masks import (
    Map,
    above,
)

# Typical a*, b* of skin in photographs, and their spread. They only break ties between patches of
# one face, so a colour cast or a grey picture does no harm.
SKIN_CHROMA = np.array([14.0, 17.0])
SKIN_CHROMA_SPREAD = 14.0
HISTOGRAM_BINS = 20
# Soft step of the distance of a*, b* from the line of skin colours.
_FOREIGN = 11, 2


def skin_chroma(lab: Map, face: Geometry) -> np.ndarray:
    """Return the chroma (a*, b*) of the skin, float [2], from the patches that agree best.

    An occluder may cover any part of the face and must not set the colour. So the median colours of
    ten patches are compared, each weighted by how likely it is skin, and the patches close to the
    one with the most support are averaged.
    """
    p, radius = face.points, 0.07 * face.width
    up = (p[27] - p[30]) * 0.9
    centres = [
        p[27] + up,
        p[[19, 20]].mean(0) + 0.5 * up,
        p[[23, 24]].mean(0) + 0.5 * up,
        p[[27, 28]].mean(0),
        p[30],
        p[[1, 31, 41]].mean(0),
        p[[15, 35, 46]].mean(0),
        p[[3, 48]].mean(0),
        p[[13, 54]].mean(0),
        p[[8, 57]].mean(0),
    ]
    rows, columns = np.mgrid[: lab.shape[0], : lab.shape[1]]
    chroma, weight = [], []
    for x, y in centres:
        patch = lab[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2]
        if len(patch) == 0:
            continue
        median = np.median(patch, 0)
        distance = np.hypot(*(median[1:] - SKIN_CHROMA)) / SKIN_CHROMA_SPREAD
        chroma.append(median[1:])
        weight.append(np.exp(-0.5 * distance**2) * np.clip(median[0] / 40, 0.1, 1) + 1e-3)
    if not chroma:
        return SKIN_CHROMA
    colours, weights = np.array(chroma), np.array(weight)
    gaps = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    support = (weights[None] * np.exp(-0.5 * (gaps / 8) ** 2)).sum(1)
    best = int(np.argmax(support * weights))
    near = weights * (gaps[best] < 12)
    return (near[:, None] * colours).sum(0) / near.sum()


def unlike_skin(lab: Map, chroma: np.ndarray) -> Map:
    """Return how clearly the colour of a pixel is not that of the skin, 0..1.

    Shade and highlights scale the chroma of skin but keep its direction; dark and overexposed
    pixels lose it. A pixel is compared with the nearest such colour.
    """
    lightness, ab = lab[..., 0], lab[..., 1:]
    dark = np.clip((32 - lightness) / 14, 0, 1)
    burnt = np.clip((lightness - 88) / 6, 0, 1)
    lowest = 0.45 * (1 - np.maximum(dark, burnt))
    along = np.clip(ab @ chroma / max(float(chroma @ chroma), 1e-3), lowest, 1.7)
    return above(np.linalg.norm(ab - along[..., None] * chroma, axis=2), *_FOREIGN)


def histogram_cells(lab: Map) -> Map:
    """Return the index of the cell of a colour histogram that each pixel falls into, int [H, W]."""
    n = HISTOGRAM_BINS
    low, step = np.array([0, -50, -50]), np.array([100, 100, 100]) / n
    cell = np.clip((lab - low) / step, 0, n - 1).astype(np.int64)
    return (cell[..., 0] * n + cell[..., 1]) * n + cell[..., 2]


def likelihood(bins: Map, weight: Map) -> Map:
    """Return the density of each pixel's colour among the weighted pixels; 1 is uniform."""
    n = HISTOGRAM_BINS
    counts = np.bincount(bins.ravel(), weight.ravel(), n**3).reshape(n, n, n)
    # Lightness varies more within one material than its chroma does.
    counts = ndimage.gaussian_filter(counts, (1.5, 0.8, 0.8), mode="nearest")
    density = counts / max(counts.sum(), 1e-6) * n**3
    return (density.ravel()[bins] + 0.05).astype(np.float32)
