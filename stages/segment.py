"""Domain-Specific Segmentation: find the part of a photograph that the generator can represent.

Cao et al., "What Decreases Editing Capability? Domain-Specific Hybrid Refinement for Improved GAN
Inversion" (WACV 2024). Superpixels whose perceptual error under the inversion is small, and whose
content belongs to a face, are in-domain; everything else is out-of-domain. For a superpixel S_k:

    d_k = sum_l mean of error map l over S_k            its error
    c_k = argmax_c sum of P(c, p) over p in S_k         its class
    m(p) = [d_k < threshold(c_k)] [P(foreign classes, p) < 0.5]
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial

import cv2
import numpy as np
import torch
from scipy import ndimage
from skimage.segmentation import slic

from dhr_batch.stages import registry
from dhr_batch.stages.base import Stage
from dhr_batch.stages.context import Context
from dhr_batch.stages.embed import projection
from dhr_batch.stages.embed.optimise import PIXEL_SIZE, FitSettings, optimise, spread
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.parsers.face_parts import INDEX
from dhr_batch.stages.networks.parsers.parser import Parser
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.networks.transfers import to_device, to_host
from dhr_batch.stages.options.segment import (
    DomainSpecificOptions,
    Thresholds,
)
from dhr_batch.stages.record import Record, required
from dhr_batch.stages.tensors import downsample, images_to_tensor

# Classes that a face generator does not represent. Their pixels are always out-of-domain.
FOREIGN_CLASSES = tuple(INDEX[n] for n in ("background", "cloth", "hat", "earring", "necklace"))
MOUTH_CLASSES = tuple(INDEX[n] for n in ("inner_mouth", "lower_lip", "upper_lip"))
# Distance from the lips up to which a superpixel is at the mouth, in sides of the picture.
MOUTH_REACH = 0.04
NO_FACE_NOTE = "segment: no face found by the parser, so the mask comes from the error alone"


def superpixels(
    image: np.ndarray,
    n_segments: int = 200,
    compactness: float = 30,
    sigma: float = 1,
    bgr: bool = False,
) -> np.ndarray:
    """Return SLIC superpixels (Achanta et al., 2012), labels int [H, W] from 1.

    Args:
        image: uint8 RGB [H, W, 3].
        n_segments: Approximate number of superpixels.
        compactness: Weight of the distance in the image against that of colours.
        sigma: Width in pixels of the Gaussian that smooths the image first.
        bgr: Swap red and blue first, as the published implementation does by mistake.
    """
    pixels = image[..., ::-1] if bgr else image
    return slic(
        np.ascontiguousarray(pixels),
        n_segments=n_segments,
        compactness=compactness,
        sigma=sigma,
        start_label=1,
    )


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize [H, W] to `size`, taking for row i the row floor(i H / h), as torch does.

    Example:
        >>> nearest(np.arange(5)[None], (1, 3))
        array([[0, 1, 3]])
    """
    height, width = labels.shape
    rows = np.arange(size[0]) * height // size[0]
    columns = np.arange(size[1]) * width // size[1]
    return labels[np.ix_(rows, columns)]


def superpixel_errors(deltas: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Return the error d_k of every superpixel: the sum over layers of its mean error.

    Args:
        deltas: Error maps of the layers, [h_l, w_l].
        labels: Superpixels, int [H, W] in 0..K.

    Returns:
        float64 [K + 1]. NaN if a superpixel covers no cell of some layer or does not occur.

    Example:
        >>> superpixel_errors([np.array([[1.0, 3.0], [0.0, 0.0]])], np.array([[0, 0], [1, 1]]))
        array([2., 0.])
    """
    count = int(labels.max()) + 1
    total = np.zeros(count)
    for delta in deltas:
        at_layer = nearest(labels, delta.shape).ravel()
        cells = np.bincount(at_layer, minlength=count)
        sums = np.bincount(at_layer, delta.ravel().astype(np.float64), minlength=count)
        with np.errstate(invalid="ignore"):
            total += sums / cells
    return total


def superpixel_classes(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class c_k of every superpixel, which has the largest summed probability.

    Args:
        probs: Class probabilities, [19, H, W].
        labels: Superpixels, int [H, W] in 0..K.

    Returns:
        int [K + 1].
    """
    count, flat = int(labels.max()) + 1, labels.ravel()
    sums = np.zeros((len(probs), count))
    for own, p in zip(sums, probs, strict=True):
        # Most pictures show few of the classes.
        if p.any():
            own[:] = np.bincount(flat, p.ravel(), minlength=count)
    return sums.argmax(0)


def at_mouth(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which superpixels have a pixel within `MOUTH_REACH` of the lips, bool [K + 1].

    Args:
        probs: Class probabilities, [19, H, W].
        labels: Superpixels, int [H, W] in 0..K.
    """
    lips = np.isin(probs.argmax(0), MOUTH_CLASSES)
    found = np.zeros(int(labels.max()) + 1, bool)
    if lips.any():
        reach = MOUTH_REACH * labels.shape[0]
        rows, columns = (np.flatnonzero(lips.any(axis)) for axis in (1, 0))
        around = tuple(
            slice(max(0, int(own[0] - reach)), int(own[-1] + reach) + 1) for own in (rows, columns)
        )
        found[labels[around][ndimage.distance_transform_edt(~lips[around]) <= reach]] = True
    return found


def domain_mask(
    deltas: Sequence[np.ndarray] | None,
    labels: np.ndarray,
    probs: np.ndarray | None,
    thresholds: Thresholds,
) -> np.ndarray:
    """Return the in-domain mask m = A B, bool [H, W].

    A is true where the error of the superpixel is below the threshold of its class, which at the
    mouth is multiplied by `thresholds.mouth`. A superpixel too small for a cell at some layer has
    no error (NaN) and is out-of-domain. B is true where a pixel is more likely part of a face, neck
    or hair than of the foreign classes. A mask of a single value is a valid result.

    Args:
        deltas: Error maps of any sizes, finest first. If None, A is left out.
        labels: Superpixels, int [H, W] in 0..K.
        probs: Class probabilities, [19, H, W]. If None (no face), every superpixel has class 0 and
            B is true everywhere.
        thresholds: Thresholds of the classes.
    """
    inside = np.ones(labels.shape, bool)
    if deltas is not None:
        errors = superpixel_errors(deltas, labels)
        if probs is None:
            classes = np.zeros(len(errors), np.int64)
        else:
            classes = superpixel_classes(probs, labels)
        limits = thresholds.of_superpixels(errors, classes, np.bincount(labels.ravel()))
        if probs is not None and thresholds.mouth != 1:
            limits = np.where(at_mouth(probs, labels), limits * thresholds.mouth, limits)
        inside &= (errors < limits)[labels]
    if probs is not None:
        inside &= probs[list(FOREIGN_CLASSES)].sum(0) < 0.5
    return inside


class DomainSpecific(Stage):
    """`dhr`: labels and in-domain mask of each record.

    The option `source` selects the render whose error is measured:

    - `embedding`: the render of the embedding.
    - `mean_row`: the render of a W code, the mean of the rows of the embedding. It shows what a
      face generator knows, without the occluders and glasses that a long W+ optimisation imitates,
      and costs one forward pass.
    - `coarse`: a W code that is optimised for `coarse_steps` steps from the mean code.
    - `projection`: the same with optimised noise maps, as published. Needs StyleGAN2.
    """

    family = "segment"
    needs = frozenset({"image", "latent", "inverted"})
    gives = frozenset({"labels", "mask"})

    Options = DomainSpecificOptions

    def models(self, aligned: bool) -> set[str]:
        if self.options.error:
            return super().models(aligned)
        return set(registry.MODELS.get(("parser", self.options.parser), ()))

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.parser: Parser = context.network("parser", self.options.parser)
        if self.options.error:
            self.perceptual: Perceptual = context.network("perceptual", self.options.perceptual)
            self.generator: Generator = context.network("generator", context.generator)
            if self.options.source == "projection":
                self._set_up_projection()

    @cached_property
    def _unit(self) -> float:
        """The length in W to which `coarse_rate` refers."""
        return spread(self.generator) if self.options.rates == "relative" else 1.0

    def process(self, records: Sequence[Record]) -> list[Record]:
        deltas = self.errors(records) if self.options.error else [None] * len(records)
        steps, pairs = self._steps, [*zip(records, deltas, strict=True)]
        counted = self.counted(pairs, steps, steps + len(pairs))
        return [self._segment(*pair) for pair in counted]

    def errors(self, records: Sequence[Record]) -> list[list[np.ndarray]]:
        """Return the error maps of each record, finest first, float32 [h_l, w_l]."""
        images = images_to_tensor([required(r.image) for r in records], self.context.device)
        if self.options.source == "coarse":
            renders = self._coarse(images)
        elif self.options.source == "mean_row":
            codes = torch.from_numpy(np.stack([required(r.latent) for r in records]))
            renders = mean_row_render(self.generator, to_device(codes, images.device))
        elif self.options.source == "projection":
            renders = self._project(images, [r.image_id for r in records])
        else:
            renders = images_to_tensor([required(r.inverted) for r in records], self.context.device)
        # Thresholds are valid for one size, which must not depend on the generator.
        size = self.options.error_size
        found = error_maps(self.perceptual, downsample(renders, size), downsample(images, size))
        return [maps[: self.options.error_layers] for maps in found]

    @property
    def _steps(self) -> int:
        """The number of steps before the images of a batch are segmented one by one."""
        coarse = self.options.error and self.options.source in ("coarse", "projection")
        return self.options.coarse_steps if coarse else 0

    def _coarsely(self, images: torch.Tensor) -> Callable[[range], Iterator[int]]:
        return partial(self.counted, total=self._steps + len(images))

    def _set_up_projection(self) -> None:
        if not isinstance(self.generator, StyleGAN2):
            raise registry.InvalidInput(
                "segment.source=projection optimises noise maps, which only StyleGAN2 has",
                "choose a StyleGAN2 as generator, or set segment.source=mean_row",
            )
        fixed = torch.Generator().manual_seed(self.context.seed)
        z = torch.randn(projection.SAMPLES, projection.STYLE_WIDTH, generator=fixed)
        self.w_mean, self.w_std = projection.statistics(self.generator, z.to(self.context.device))

    def _project(self, images: torch.Tensor, image_ids: Sequence[str]) -> torch.Tensor:
        """Return the last render of a projection, not clamped.

        Random numbers depend only on the seed and the image ids.
        """
        seeds = [zlib.crc32(f"{self.context.seed}:{name}".encode()) for name in image_ids]
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]

        def draw(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.stack([torch.randn(shape[1:], generator=source) for source in sources])

        run = projection.Projector(
            self.generator,
            self.perceptual,
            downsample(images, PIXEL_SIZE),
            draw,
            steps=self.options.coarse_steps,
            rate=self.options.coarse_rate * self._unit,
            w_mean=self.w_mean,
            w_std=self.w_std,
        )
        for _ in self._coarsely(images)(range(self.options.coarse_steps)):
            run.step()
        return run.render

    def _coarse(self, images: torch.Tensor) -> torch.Tensor:
        start = self.generator.w_mean.expand(len(images), -1)
        settings = FitSettings(
            "w",
            self.options.coarse_steps,
            self.options.coarse_rate,
            pixel_weight=0.0,
            unit=self._unit,
        )
        counted = self._coarsely(images)
        ws = optimise(self.generator, self.perceptual, images, start, settings, counted=counted)
        with torch.no_grad():
            return self.generator.synthesize(ws)

    def _segment(self, record: Record, deltas: list[np.ndarray] | None) -> Record:
        full = required(record.image)
        side, size = len(full), self.options.size
        image = full
        if size is not None and size < side:
            image = cv2.resize(full, (size, size), interpolation=cv2.INTER_AREA)
        probs = self.parser.parse(image)
        pixels = superpixels(
            image, self.options.segments, self.options.compactness, bgr=self.options.bgr
        )
        mask = domain_mask(deltas, pixels, probs, self.options.thresholds)
        notes = record.notes if probs is not None else (*record.notes, NO_FACE_NOTE)
        labels = np.zeros(image.shape[:2]) if probs is None else probs.argmax(0)
        labels = labels.astype(np.uint8)
        if image is not full:
            shares = cv2.resize(mask.astype(np.uint8) * 255, (side, side))
            mask = shares >= 128
            labels = np.asarray(cv2.resize(labels, (side, side), interpolation=cv2.INTER_NEAREST))
        return replace(record, labels=labels, mask=mask, notes=notes)


@torch.no_grad()
def mean_row_render(generator: Generator, codes: torch.Tensor) -> torch.Tensor:
    """Render the mean of the live rows of W+ codes [B, L, 512], [B, 3, R, R]."""
    return generator.synthesize(generator.broadcast(codes[:, generator.live_rows].mean(1)))


@torch.no_grad()
def error_maps(
    perceptual: Perceptual, renders: torch.Tensor, images: torch.Tensor
) -> list[list[np.ndarray]]:
    """Return perceptual error maps of renders against images, both [B, 3, R, R] in [-1, 1].

    Returns:
        For each image the maps of its layers, float32 [h_l, w_l], finest first.
    """
    layers = perceptual.maps(renders, perceptual.features(images))
    arrays = to_host([layer[:, 0].float() for layer in layers])
    return [[layer[i] for layer in arrays] for i in range(len(images))]
