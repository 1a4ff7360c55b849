"""Spatially-adaptive multilayer inversion: each segment in the earliest space that represents it.

Parmar et al., "Spatially-Adaptive Multilayer Selection for GAN Inversion and Editing" (CVPR 2022,
arXiv 2206.08357). A picture is divided into segments, and each is assigned to the W+ code or to a
feature level F4, F6, F8 or F10 (16, 32, 64, 128 px), by the error that an inversion there would
leave. With the masks m_F of the levels, offsets dF of their features h_F and the code w,

    h_F <- h_F + m_F dF
    minimise over w and all dF:  mse(y, x) + lpips(y, x) + priors(w) + 5 sum_F mean(dF^2)

An edit moves w and keeps the features of the unedited pass where a level is assigned:
``h_F <- (1 - m_F) h_F + m_F h_F(w)``. docs/decisions/refinement.md says what
differs from the published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.device import full_precision
from dhr_batch.stages.embed.projection import learning_rate
from dhr_batch.stages.networks.encoders import deeplab
from dhr_batch.stages.networks.generators.generator import STYLE_WIDTH, Generator, Place
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, FACE_CLASSES, INDEX
from dhr_batch.stages.networks.parsers.parser import Parser
from dhr_batch.stages.options.refine import SpatiallyAdaptiveOptions
from dhr_batch.stages.refine.base import LossRefiner, Refinement
from dhr_batch.stages.registry import InvalidInput
from dhr_batch.stages.tensors import downsample, images_to_tensor, tensor_to_images

CODE = "W+"
# The levels in the order of their assignment: the last that passes is taken.
ORDER = ("F10", "F8", "F6", "F4", CODE)
SIZES = {"F4": 16, "F6": 32, "F8": 64, "F10": 128}
# Sides at which pictures are compared, and errors of the embedding measured.
COMPARED = 256
_SLOPE, _SAMPLES = 5.0, 5000


@dataclass(frozen=True, slots=True)
class Form:
    """What differs between the official code and that of the toolbox GANInverter.

    Attributes:
        levels: The feature levels.
        tap: Where in the block of their size the offsets are added.
        fused: Classes that are one segment.
        whole: Compare pixels at full size and without a clamp, not at `COMPARED`.
        pull: Pull the code to its start as well, not only the offsets of features to 0.
    """

    levels: tuple[str, ...]
    tap: Literal["up", "out"]
    fused: tuple[int, ...]
    whole: bool
    pull: bool


_FACE = (*FACE_CLASSES, INDEX["neck"], INDEX["right_ear"], INDEX["left_ear"])
FORMS = {
    "official": Form(("F4", "F6", "F8", "F10"), "out", _FACE, whole=False, pull=False),
    "ganinverter": Form(("F4", "F6", "F10"), "up", (*_FACE, INDEX["hair"]), whole=True, pull=True),
}


def places(generator: Generator, form: Form) -> dict[str, Place]:
    """Return where a generator has the levels of a form, by their size in pixels.

    Small generators lack the finest levels, and the next coarser one takes their segments. A level
    as large as the picture does not count, since no image layer of StyleGAN2 follows it.

    Raises:
        InvalidInput: The generator has none of the levels.
    """
    found: dict[str, Place] = {
        level: (SIZES[level], form.tap)
        for level in form.levels
        if (SIZES[level], form.tap) in generator.places and SIZES[level] < generator.resolution
    }
    if not found:
        raise InvalidInput(
            f"a generator of {generator.resolution} px has no features of "
            f"{SIZES[form.levels[0]]} px or more before its last layer, which SAM needs",
            "choose a larger generator",
        )
    return found


# ---------------------------------------------------------------------- assignment


def segments(probs: np.ndarray | None, size: tuple[int, int], fused: Sequence[int]) -> np.ndarray:
    """Return the segment of each pixel, int [H, W]: its class, those of `fused` as one.

    Args:
        probs: Class probabilities [19, H, W], or None (no face), which is a single segment.
        size: Height and width.
        fused: Classes that are one segment.
    """
    if probs is None:
        return np.zeros(size, np.int64)
    table = np.arange(len(CLASSES))
    table[list(fused)] = fused[0]
    return table[probs.argmax(0)]


def assign(errors: Mapping[str, np.ndarray], found: np.ndarray, threshold: float) -> np.ndarray:
    """Return the level of each pixel, the last of `ORDER` whose error in its segment is small.

    Args:
        errors: Error map of each level, [H, W]. Levels that are left out are not assigned.
        found: Segments, int [H, W].
        threshold: Largest mean error over a segment.

    Returns:
        Indices into `ORDER`, uint8 [H, W]. A segment for which no level is good enough has the
        first.
    """
    index = np.unique(found, return_inverse=True)[1].reshape(-1)
    cells = np.bincount(index)
    candidates = [i for i, level in enumerate(ORDER) if level in errors]
    chosen = np.full(len(cells), candidates[0], np.uint8)
    for i in candidates:
        values = np.asarray(errors[ORDER[i]], np.float64).ravel()
        chosen[np.bincount(index, values) / cells <= threshold] = i
    return chosen[index].reshape(found.shape)


def soft_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask [H, W] of 0 and 1 by a Lanczos filter to float32 [size, size] in 0..1."""
    picture = Image.fromarray(mask.astype(np.float32))
    resized = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))
    return resized.clip(0, mask.max()).astype(np.float32)


def lanczos(images: Tensor, size: int) -> Tensor:
    """Shrink images [B, 3, R, R] of 8 bits, in [-1, 1], to `size` px; return smaller ones as is."""
    if images.shape[-1] <= size:
        return images
    pictures = [Image.fromarray(image) for image in tensor_to_images(images)]
    small = [np.asarray(p.resize((size, size), Image.Resampling.LANCZOS)) for p in pictures]
    return images_to_tensor(small).to(images)


# ---------------------------------------------------------------------- losses


class CodePrior:
    """Distance of codes from those of the generator (Wulff and Torralba, 2020).

    In the space ``v = leaky_relu(w, 5)``, where codes w are about normal, it is the Mahalanobis
    distance ``(v - m)^T C^-1 (v - m)`` with the covariance C of v over seeded samples. As
    published, m is the image of the mean of w, not the mean of v. Computed in float64.
    """

    def __init__(self, generator: Generator) -> None:
        z = torch.randn(_SAMPLES, STYLE_WIDTH, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            w = generator.map(z.to(generator.w_mean)).double()
        self.mean = F.leaky_relu(w.mean(0), _SLOPE)
        covariance = torch.cov(F.leaky_relu(w, _SLOPE).T)
        self.precision = torch.linalg.inv(covariance + 1e-8 * torch.eye(STYLE_WIDTH).to(covariance))

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the sum over the rows of codes [B, n, 512], float64 [B]."""
        away = F.leaky_relu(rows.double(), _SLOPE) - self.mean
        return ((away @ self.precision) * away).sum((1, 2))


def row_distances(rows: Tensor) -> Tensor:
    """Return ``sum_i |w_i - w_0|`` over the rows of codes [B, n, 512], [B]."""
    return torch.linalg.vector_norm(rows[:, 1:] - rows[:, :1], dim=2).sum(1)


# ---------------------------------------------------------------------- refinement


class SpatiallyAdaptive(LossRefiner):
    """`sam`: refine the code and features of four sizes, each where it is assigned.

    The masks of the pipeline are not used. The assignment comes from a parser and error maps. With
    `invertibility=predictor` a trained network predicts the error that each level would leave;
    `measured` takes the error of the embedding instead, with a threshold for each level: the worse
    the code represents a segment, the finer its level.
    """

    Options = SpatiallyAdaptiveOptions

    def models(self, aligned: bool) -> set[str]:
        predictor = {"sam-invertibility"} if self.options.invertibility == "predictor" else set()
        return super().models(aligned) | predictor

    def setup_render(self, context: Context) -> None:
        super().setup_render(context)
        self.form = FORMS[self.options.variant]
        self.places = places(self.generator, self.form)

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.parser: Parser = context.network("parser", self.options.parser)
        if self.options.invertibility == "predictor":
            self.predictor = deeplab.invertibility(context)
        self.prior = CodePrior(self.generator)

    def refine(self, images: Tensor, ws: Tensor, masks: Tensor) -> Refinement:
        with full_precision(images):
            options, levels = self.options, self.masks(images, ws)
        code = torch.zeros_like(ws).requires_grad_()
        features = {
            level: ws.new_zeros(len(ws), *self.generator.place_shape(self.places[level]))
            for level in self.places
        }
        # Where a level is not assigned, its gradient is 0 and its offset stays 0.
        used = {n: f.requires_grad_() for n, f in features.items() if bool(levels[n].any())}
        loss = self._loss(images)
        moved = [code, *used.values()]
        adam = torch.optim.Adam(moved, lr=options.rate)
        for step in self.counted(range(options.steps)):
            adam.param_groups[0]["lr"] = learning_rate(step, options.steps, options.rate)
            taps = {self.places[n]: _adding(levels[n] * f) for n, f in used.items()}
            image = self.generator.synthesize(ws + code, taps=taps)
            total = loss(image, ws, code, used).sum()
            for value, grad in zip(moved, torch.autograd.grad(total, moved), strict=True):
                value.grad = grad
            adam.step()
        state = {"code": code.detach().float()}
        for level, feature in features.items():
            # The render uses the rounded numbers too, so that another one is the same.
            state[level] = (levels[level] * feature.detach()).half()
            state[f"mask.{level}"] = levels[level].float()
        return Refinement({}, state=state)

    @torch.no_grad()
    def masks(self, images: Tensor, ws: Tensor) -> dict[str, Tensor]:
        """Return the soft mask of each feature level, [B, 1, s, s], from images and their codes."""
        if self.options.invertibility == "predictor":
            errors, threshold = self._predicted(images), self.options.threshold
        else:
            errors, threshold = self._measured(images, ws), 1.0
        found: dict[str, list[np.ndarray]] = {level: [] for level in self.places}
        for maps, image in zip(errors, tensor_to_images(images), strict=True):
            parts = segments(self.parser.parse(image), image.shape[:2], self.form.fused)
            chosen = assign(maps, parts, threshold)
            for level, (size, _) in self.places.items():
                found[level].append(soft_mask(chosen == ORDER.index(level), size))
        return {n: torch.from_numpy(np.stack(m)).to(ws).unsqueeze(1) for n, m in found.items()}

    def _predicted(self, images: Tensor) -> list[dict[str, np.ndarray]]:
        levels = [CODE, *self.places]
        # One by one, because the network sees a picture at its full size.
        maps = [self.predictor(image.float()) for image in images.split(1)]
        return [{n: m[n][0, 0].cpu().numpy() for n in levels} for m in maps]

    def _measured(self, images: Tensor, ws: Tensor) -> list[dict[str, np.ndarray]]:
        """Return the error of the embedding in units of each level's threshold, [R, R]."""
        render = downsample(self.generator.synthesize(ws), COMPARED).clamp(-1, 1)
        target = self.perceptual.features(downsample(images, COMPARED))
        layers = self.perceptual.maps(render, target)
        size = images.shape[2:]
        error = torch.stack([F.interpolate(m, size, mode="bilinear")[:, 0] for m in layers]).sum(0)
        limits = dict(
            zip(reversed(ORDER), (*self.options.measured_thresholds, math.inf), strict=True)
        )
        levels = [CODE, *self.places]
        return [{n: e / limits[n] for n in levels} for e in error.float().cpu().numpy()]

    def _loss(self, images: Tensor) -> Callable[..., Tensor]:
        """Return the loss of each image, [B], as a function of a render and what is refined."""
        options, form = self.options, self.form
        rows = torch.tensor(self.generator.live_rows, device=images.device)
        small = lanczos(images, COMPARED)
        target = self.perceptual.features(small)

        def loss(image: Tensor, ws: Tensor, code: Tensor, features: dict[str, Tensor]) -> Tensor:
            seen = downsample(image, COMPARED).clamp(-1, 1)
            difference = image - images if form.whole else seen - small
            total = options.pixel_weight * difference.square().mean((1, 2, 3))
            total = total + options.perceptual_weight * self.perceptual.distance(seen, target)
            live = (ws + code)[:, rows]
            total = total + options.row_weight * row_distances(live)
            total = total + options.prior_weight * self.prior(live)
            pulled = [*features.values(), *([code[:, rows]] if form.pull else [])]
            for offset in pulled:
                total = total + options.feature_weight * offset.square().flatten(1).mean(1)
            return total

        return loss

    # ------------------------------------------------------------------ rendering

    def refined_codes(self, ws: Tensor, refinement: Refinement) -> Tensor:
        return ws + refinement.state["code"]

    def render(self, ws: Tensor, refinement: Refinement, masks: Tensor) -> Tensor:
        state = refinement.state
        taps = {place: _adding(state[level]) for level, place in self.places.items()}
        return self.generator.synthesize(self.refined_codes(ws, refinement), taps=taps)

    def render_edit(
        self,
        ws: Tensor,
        edited: Tensor,
        refinement: Refinement,
        masks: Tensor,
        styles: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """See `Refiner.render_edit`. Renders the unedited code once more."""
        state, kept = refinement.state, {}

        def keeping(level: str) -> Callable[[Tensor], Tensor]:
            def tap(x: Tensor) -> Tensor:
                kept[level] = _adding(state[level])(x)
                return kept[level]

            return tap

        taps = {place: keeping(level) for level, place in self.places.items()}
        self.generator.synthesize(self.refined_codes(ws, refinement), taps=taps)
        blend = {
            place: _blending(kept[level], state[f"mask.{level}"])
            for level, place in self.places.items()
        }
        return self.generator.synthesize(edited, styles, blend)


def _adding(offset: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x + offset.to(x)


def _blending(kept: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.lerp(x, kept, mask.to(x))
