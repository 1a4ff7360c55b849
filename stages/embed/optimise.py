"""Embedding by optimisation: fit a code in W or W+ to an aligned photograph with Adam.

Lengths in W are measured in units of its spread, so that a network whose codes are twice as long,
and whose modulations are half as strong, gives the same renders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.device import full_precision
from dhr_batch.stages.embed.base import Embedder
from dhr_batch.stages.networks.generators.generator import STYLE_WIDTH, Generator
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.options.embed import OptimiseWOptions, OptimiseWPlusOptions
from dhr_batch.stages.tensors import downsample

PIXEL_SIZE = 256
# Rows and columns of eyes, nose and mouth in an FFHQ crop, in 256ths of its side.
FACE = (72, 200), (64, 192)
# Numbers of codes from which the axes of the prior and the spread of W are estimated.
_SAMPLES, _FEW = 8192, 2048


def ramp(step: int, steps: int, up: float, down: float) -> float:
    """Return the learning-rate factor of a step: linear warm-up and cosine decay to zero.

    The schedule is that of StyleGAN2's projector (Karras et al., 2020, appendix D), except that the
    factor of the first step is not 0.

    Args:
        step: Index of the step, 0 to `steps` - 1.
        steps: Number of steps.
        up: Share of the steps over which the factor rises, 0..1.
        down: Share of the steps, at the end, over which it falls, 0..1.

    Example:
        >>> [round(ramp(step, 8, 0.25, 0.5), 2) for step in range(8)]
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    t = step / steps
    decay = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / down)) if down > 0 else 1.0
    return decay * min(1.0, (step + 1) / (up * steps)) if up > 0 else decay


def face_region(images: Tensor) -> Tensor:
    """Cut out the inner face of FFHQ crops, [B, 3, R, R] -> [B, 3, R/2, R/2], without resizing.

    Images below 64 px, whose half is too small for a perceptual network, are returned whole.
    """
    if images.shape[-1] < 64:
        return images
    (top, bottom), (left, right) = ([v * images.shape[-1] // 256 for v in span] for span in FACE)
    return images[:, :, top:bottom, left:right]


@dataclass(frozen=True)
class FitSettings:
    """Schedule and loss of `optimise`.

    Attributes:
        space: Fit one vector per image (`w`) or one per row of the code (`w+`).
        steps: Number of optimisation steps.
        rate: Learning rate of Adam at its maximum.
        pixel_weight: Weight of the mean squared error.
        perceptual_size: Side in pixels at which perceptual features are compared.
        face_weight: Weight of the perceptual distance of the inner face (`face_region`).
        decay: Share of the steps, at the end, over which the rate falls to 0.
        pull: In W+, weight of the mean squared distance of the rows from their mean, which keeps
            codes editable.
        prior: With a `basis`, weight of the mean square of the coordinates u.
        unit: The length in W to which `rate` and `pull` refer. With a `basis`, its columns take the
            place of the unit of `rate`.
        betas: Shares of the earlier gradients and squared gradients that Adam keeps at each step.
    """

    space: Literal["w", "w+"]
    steps: int
    rate: float
    pixel_weight: float
    perceptual_size: int = 256
    face_weight: float = 0.0
    decay: float = 0.5
    pull: float = 0.0
    prior: float = 0.0
    unit: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)


def optimise(
    generator: Generator,
    perceptual: Perceptual,
    images: Tensor,
    start: Tensor,
    settings: FitSettings,
    basis: Tensor | None = None,
    counted: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """Fit latent codes to images with Adam.

    The loss of an image x and its render y, both at 256 px or below, is
    ``d(y, x) + face_weight d(face(y), face(x)) + pixel_weight mse(y, x)`` plus the terms `pull` and
    `prior`, d being the perceptual distance. The losses of a batch are added up, so the code of an
    image does not depend on the others.

    Args:
        images: [B, 3, R, R] in [-1, 1].
        start: Codes in W to begin from, [B, 512].
        settings: Schedule and weights of the loss.
        basis: If given, [512, 512]: a vector of the code is ``start + basis u``, and u is optimised
            from 0. Otherwise it is ``start + unit u``.
        counted: Yields the numbers of the steps, and may tell how many are done (`Stage.counted`).

    Returns:
        W+ codes [B, L, 512]. Rows that do not reach the image are set to the mean of those that do,
        so that the code also renders with a generator that uses more rows.
    """
    space, face_weight, unit = settings.space, settings.face_weight, settings.unit
    target = downsample(images, PIXEL_SIZE)
    target_features = perceptual.features(downsample(target, settings.perceptual_size))
    face_features = perceptual.features(face_region(target)) if face_weight else None
    live = torch.tensor(generator.live_rows, device=start.device)
    start = start.detach() if space == "w" else start.detach().unsqueeze(1).repeat(1, len(live), 1)
    moved = torch.zeros_like(start).requires_grad_()

    def code() -> Tensor:
        if basis is None:
            return start + unit * moved
        with full_precision(start):
            return start + moved @ basis.T

    adam = torch.optim.Adam([moved], lr=settings.rate, betas=settings.betas)
    for step in counted(range(settings.steps)):
        for group in adam.param_groups:
            group["lr"] = settings.rate * ramp(step, settings.steps, 0.05, settings.decay)
        rows = code()
        render = downsample(generator.synthesize(_codes(generator, rows, live)), PIXEL_SIZE)
        small = downsample(render, settings.perceptual_size)
        loss = perceptual.distance(small, target_features).sum()
        if face_features is not None:
            face = perceptual.distance(face_region(render), face_features)
            loss = loss + face_weight * face.sum()
        loss = loss + settings.pixel_weight * (render - target).square().mean((1, 2, 3)).sum()
        if settings.pull and space == "w+":
            apart = ((rows - rows.mean(1, keepdim=True)) / unit).square().mean((1, 2))
            loss = loss + settings.pull * apart.sum()
        if basis is not None:
            loss = loss + settings.prior * moved.square().mean(-1).sum()
        (moved.grad,) = torch.autograd.grad(loss, [moved])
        adam.step()
    return _codes(generator, code().detach(), live)


def spread(generator: Generator) -> float:
    """Return the root mean square of ``w - w_mean`` over the numbers of seeded samples of w."""
    return float(_samples(generator, _FEW).square().mean().sqrt())


@torch.no_grad()
def _samples(generator: Generator, count: int) -> Tensor:
    """Return seeded samples of ``w - w_mean``, [count, 512]."""
    z = torch.randn(count, STYLE_WIDTH, generator=torch.Generator().manual_seed(0))
    return generator.map(z.to(generator.w_mean)) - generator.w_mean


def whitening(generator: Generator, power: float = 1.0) -> Tensor:
    """Return a matrix A, [512, 512], for which ``w = w_mean + A u`` has u of unit covariance.

    A is ``V diag(sqrt(values))`` from the eigenvectors V of the covariance of seeded samples of w.
    Wulff and Torralba, "Improving Inversion and Generation Diversity in StyleGAN using a
    Gaussianized Latent Space" (2020), section 3, without their leaky ReLU.

    Args:
        generator: The generator whose W is sampled.
        power: 1 for A as above. A smaller one raises the ratios of the standard deviations to it,
            down to 0, for which u is w - w_mean in units of the spread, in other axes.
    """
    # Rounding in float32, or TF32, would turn axes of similar variances into each other, and Adam
    # depends on the axes: codes would differ between processors.
    centred = _samples(generator, _SAMPLES).cpu().double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    unit = values.mean().sqrt()
    lengths = (values.clamp_min(0).sqrt() / unit).pow(power) * unit
    return (vectors * lengths).to(generator.w_mean)


def _codes(generator: Generator, rows: Tensor, live: Tensor) -> Tensor:
    """Return W+ codes [B, L, 512] of codes in W [B, 512] or of the rows `live`, [B, n, 512]."""
    if rows.ndim == 2:
        return generator.broadcast(rows)
    mean = rows.mean(1, keepdim=True).expand(-1, generator.num_ws, -1)
    return mean.index_copy(1, live, rows)


class _Optimise(Embedder):
    def setup(self, context: Context) -> None:
        super().setup(context)
        self.perceptual: Perceptual = context.network("perceptual", self.options.perceptual)
        relative = self.options.rates == "relative"
        self._unit = spread(self.generator) if relative else 1.0

    def _settings(
        self, space: Literal["w", "w+"], steps: int, rate: float, pull: float = 0, prior: float = 0
    ) -> FitSettings:
        shared = {"pixel_weight", "perceptual_size", "face_weight", "decay", "betas"}
        options = self.options.model_dump(include=shared)
        return FitSettings(space, steps, rate, pull=pull, prior=prior, unit=self._unit, **options)


class OptimiseW(_Optimise):
    """`w`: one 512-vector for all layers (StyleGAN2's projector, without noise optimisation).

    With a `prior`, the code moves along the axes on which the generator's own codes vary, each in
    units of its standard deviation (`whitening`), and is pulled towards the mean. It then stays
    near codes of faces and cannot imitate things that are not part of a face.
    """

    Options = OptimiseWOptions

    def setup(self, context: Context) -> None:
        super().setup(context)
        self._basis = whitening(self.generator) if self.options.prior else None

    def embed(self, images: Tensor) -> Tensor:
        options, start = self.options, self.generator.w_mean.expand(len(images), -1)
        settings = self._settings("w", options.steps, options.rate, prior=options.prior)
        networks = (self.generator, self.perceptual)
        return optimise(*networks, images, start, settings, self._basis, self.counted)


class OptimiseWPlus(_Optimise):
    """`w+`: one 512-vector per layer, after a start in W.

    Abdal et al., "Image2StyleGAN: How to Embed Images Into the StyleGAN Latent Space?" (2019). The
    first `w_share` of the steps moves all rows together, which keeps the code near those that the
    generator was trained on and that directions were fitted on. Steps are longer along the axes on
    which the generator's own codes vary more (`whitening`), so that few of them suffice.
    """

    Options = OptimiseWPlusOptions

    def setup(self, context: Context) -> None:
        super().setup(context)
        power = self.options.whitening
        self._basis = whitening(self.generator, power) if power else None

    def embed(self, images: Tensor) -> Tensor:
        networks, options = (self.generator, self.perceptual), self.options
        in_w = round(options.steps * options.w_share)
        start = self.generator.w_mean.expand(len(images), -1)
        if in_w:
            settings = self._settings("w", in_w, options.w_rate)
            first = partial(self.counted, total=options.steps)
            start = optimise(*networks, images, start, settings, self._basis, first)[:, 0]
        settings = self._settings("w+", options.steps - in_w, options.rate, options.pull)
        second = partial(self.counted, before=in_w, total=options.steps)
        return optimise(*networks, images, start, settings, self._basis, second)
