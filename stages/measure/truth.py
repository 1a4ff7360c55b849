"""Compare a run with the ground truth of a synthetic picture: code, occluder and clean face."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dhr_batch.stages.measure.metrics import MIN_SHARE, Part, shrink, shrink_mask
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.occluders import soft_extent
from dhr_batch.stages.record import Truth


def at_size(truth: Truth, size: int) -> Truth:
    """Return a ground truth at no more than `size` px."""
    return replace(
        truth,
        clean=shrink(truth.clean, size),
        face=shrink_mask(truth.face, size),
        occluder=shrink_mask(truth.occluder, size),
    )


def visible_face(truth: Truth) -> np.ndarray:
    """Return the face without the part under the occluder, bool [T, T].

    For a picture without an occluder, that of its twin counts. Pixels at the soft edge, which show
    part of the occluder, are left out.
    """
    return truth.face & ~soft_extent(truth.occluder)


def hide_occluder(image: np.ndarray, truth: Truth) -> np.ndarray:
    """Return a render with the clean picture where the occluder is visible, uint8 [T, T, 3].

    Perceptual networks see the surroundings of a pixel. Without this, whatever a render shows under
    the occluder would count as an error of the face beside it.
    """
    return np.where(
        soft_extent(truth.occluder)[..., None], truth.clean, shrink(image, len(truth.clean))
    )


def truth_parts(truth: Truth) -> dict[str, Part]:
    """Return the part that `measure` compares: `visible_face`, or none if that is too small."""
    part = visible_face(truth)
    return {"": part} if part.mean() >= MIN_SHARE else {}


def mask_values(mask: np.ndarray, truth: Truth) -> dict[str, float]:
    """Return how well an in-domain mask separates the occluder from the face.

    Within the face of the clean picture, out-of-domain pixels are compared with occluded pixels.

    Args:
        mask: In-domain mask, bool [T, T].
        truth: The ground truth, at the same size.

    Returns:
        ``mask_iou``, ``mask_recall`` and, unless all of the face is in-domain, ``mask_precision``;
        ``mask_false``, the out-of-domain share of the face that is not occluded; and ``occluded``,
        the occluded share of the face.
    """
    found = ~mask & truth.face
    hidden = truth.occluder & truth.face
    values = {"occluded": 0.0}
    free = truth.face & ~truth.occluder
    if free.any():
        values["mask_false"] = float(found[free].mean())
    if truth.occluded and hidden.any():
        both = float((found & hidden).sum())
        values["occluded"] = float(hidden.sum() / truth.face.sum())
        values["mask_iou"] = both / float((found | hidden).sum())
        values["mask_recall"] = both / float(hidden.sum())
        if found.any():
            values["mask_precision"] = both / float(found.sum())
    return values


@torch.no_grad()
def latent_values(latent: np.ndarray, truth: Truth, generator: Generator) -> dict[str, float]:
    """Return the distance of a W+ code [L, 512] from the code w of the clean face.

    The unit is the distance of w from the mean code.

    Returns:
        ``latent_w``, for the mean of the live rows, and ``latent_w_plus``, the root mean square
        over the live rows. Empty if the generator maps the z of the picture to another code,
        because the two W spaces are then unrelated.
    """
    device = generator.w_mean.device
    z = torch.from_numpy(truth.z[None]).to(device)
    w = generator.map(z, truth.truncation)[0].cpu().numpy()
    spread = float(np.linalg.norm(truth.latent - generator.w_mean.cpu().numpy()))
    if spread == 0 or np.linalg.norm(w - truth.latent) > 0.01 * spread:
        return {}
    steps = latent[generator.live_rows] - truth.latent
    return {
        "latent_w": float(np.linalg.norm(steps.mean(0)) / spread),
        "latent_w_plus": float(np.sqrt(np.square(steps).sum(1).mean()) / spread),
    }
