"""A run against what is known of a synthetic picture: its code, its occluder, its clean face."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dhr_batch.stages.base import Truth
from dhr_batch.stages.metrics import MIN_SHARE, Part, shrink, shrink_mask
from dhr_batch.stages.networks.generator import Generator
from dhr_batch.stages.occluders import soft_extent


def truth_at_size(truth: Truth, size: int) -> Truth:
    """The same at `size` px, if it is larger."""
    return replace(
        truth,
        clean=shrink(truth.clean, size),
        face=shrink_mask(truth.face, size),
        occluder=shrink_mask(truth.occluder, size),
    )


def visible_face(truth: Truth) -> np.ndarray:
    """The face beside the occluder, bool [T, T]; for a picture without one, beside its twin's.

    Pixels next to the occluder, which show it in part, are left out.
    """
    return truth.face & ~soft_extent(truth.occluder)


def without_occluder(image: np.ndarray, truth: Truth) -> np.ndarray:
    """A render at the truth's size with the clean picture where the occluder is seen.

    Perceptual networks look beyond a pixel: what a render has under the occluder would count as an
    error of the face beside it.
    """
    return np.where(
        soft_extent(truth.occluder)[..., None], truth.clean, shrink(image, len(truth.clean))
    )


def comparison_parts(truth: Truth) -> dict[str, Part]:
    """The part that `measure` compares: `visible_face`, or none where that is too small."""
    part = visible_face(truth)
    return {"": part} if part.mean() >= MIN_SHARE else {}


def mask_values(mask: np.ndarray, truth: Truth) -> dict[str, float]:
    """How well the in-domain mask (bool [T, T]) separates the occluder from the face.

    Within the face F of the clean picture, out-of-domain pixels are compared with occluded ones:
    ``mask_iou``, ``mask_precision`` (none where nothing is out-of-domain) and ``mask_recall``.
    ``mask_false``: out-of-domain share of the rest of the face. ``occluded``: occluded share of F.
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
    """Distance of a W+ code [L, 512] from the code of the clean face; 1 is as far as the mean code.

    ``latent_w``: of the mean over the rows that reach the image. ``latent_w_plus``: root mean
    square over these rows. Empty where the generator maps the picture's z to another code, so
    that the two W spaces have nothing to do with each other.
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
