"""Embedding: find the latent code whose render comes closest to an aligned photograph."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from dhr_batch.stages.base import Context, Record, Stage, StageOptions, required
from dhr_batch.stages.networks.generator import STYLE_WIDTH, Generator
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.stages.tensors import downsample, images_to_tensor, tensor_to_images

PIXEL_SIZE = 256
# Eyes, nose and mouth of an FFHQ crop, in 256ths of its side: rows, columns.
FACE = (72, 200), (64, 192)
# Codes from which the axes of the prior are taken.
_SAMPLES = 8192


class Embedder(Stage):
    """Base of the family. A member implements `embed`; this class handles the records."""

    family = "embed"
    needs = frozenset({"image"})
    gives = frozenset({"latent", "inverted"})

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.generator: Generator = context.network("generator", context.generator)

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, R, R] in [-1, 1] -> W+ codes [B, L, 512], each independent of its batch mates."""

    def process(self, records: Sequence[Record]) -> list[Record]:
        images = images_to_tensor([required(r.image) for r in records], self.context.device)
        ws = self.embed(images)
        if not torch.isfinite(ws).all():
            raise ArithmeticError("embedding diverged to non-finite values")
        with torch.no_grad():
            renders = tensor_to_images(self.generator.synthesize(ws))
        codes = ws.detach().float().cpu().numpy()
        return [
            replace(record, latent=code, inverted=render)
            for record, code, render in zip(records, codes, renders, strict=True)
        ]


def ramp(step: int, steps: int, up: float, down: float) -> float:
    """Learning-rate factor of StyleGAN2's projector: linear warm-up, cosine decay to zero.

    up, down: shares of the schedule (Karras et al., 2020). Never 0 before the end.
    """
    t = step / steps
    decay = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / down)) if down > 0 else 1.0
    return decay * min(1.0, (step + 1) / (up * steps)) if up > 0 else decay


def face_region(images: Tensor) -> Tensor:
    """The inner face of FFHQ crops, [B, 3, R, R] -> [B, 3, R/2, R/2], not resized.

    Images below 64 px, whose half is too small for a perceptual network, are returned whole.
    """
    if images.shape[-1] < 64:
        return images
    (top, bottom), (left, right) = ([v * images.shape[-1] // 256 for v in span] for span in FACE)
    return images[:, :, top:bottom, left:right]


def optimise(
    generator: Generator,
    perceptual: Perceptual,
    images: Tensor,
    start: Tensor,
    *,
    space: Literal["w", "w+"],
    steps: int,
    rate: float,
    pixel_weight: float,
    pull: float = 0.0,
    perceptual_size: int = 256,
    face_weight: float = 0.0,
    decay: float = 0.5,
    prior: float = 0.0,
    basis: Tensor | None = None,
) -> Tensor:
    """Fit latent codes to images by Adam on a perceptual plus a pixel loss.

    images: [B, 3, R, R] in [-1, 1]; pixels are compared at 256 px or below, features at
    `perceptual_size`, and once more on the face alone with `face_weight`. start: [B, 512]. pull:
    weight of the mean squared distance of the rows from their mean, which keeps W+ codes editable.
    decay: share of the steps, the last, over which the rate falls to 0. basis: [512, 512]; a code
    in W is then ``start + basis u``; u moves, pulled to 0 by its mean square times `prior`.
    Every term is a sum of per-image terms, so an image's code does not depend on its batch mates.
    Returns W+ codes [B, L, 512]; rows that do not reach the image are set to the mean of those
    that do, so that the code also renders on a larger cut of the same network.
    """
    target = downsample(images, PIXEL_SIZE)
    target_features = perceptual.features(downsample(target, perceptual_size))
    face_features = perceptual.features(face_region(target)) if face_weight else None
    live = generator.live_rows
    start = start.detach() if space == "w" else start.detach().unsqueeze(1).repeat(1, len(live), 1)
    moved = (start if basis is None else torch.zeros_like(start)).clone().requires_grad_()
    adam = torch.optim.Adam([moved], lr=rate)
    for step in range(steps):
        for group in adam.param_groups:
            group["lr"] = rate * ramp(step, steps, 0.05, decay)
        rows = moved if basis is None else start + moved @ basis.T
        render = downsample(generator.synthesize(_codes(generator, rows)), PIXEL_SIZE)
        small = downsample(render, perceptual_size)
        loss = perceptual.distance(small, target_features).sum()
        if face_features is not None:
            face = perceptual.distance(face_region(render), face_features)
            loss = loss + face_weight * face.sum()
        loss = loss + pixel_weight * (render - target).square().mean((1, 2, 3)).sum()
        if pull and space == "w+":
            spread = (rows - rows.mean(1, keepdim=True)).square().mean((1, 2))
            loss = loss + pull * spread.sum()
        if basis is not None:
            loss = loss + prior * moved.square().mean(1).sum()
        (moved.grad,) = torch.autograd.grad(loss, [moved])
        adam.step()
    moved = moved.detach()
    return _codes(generator, moved if basis is None else start + moved @ basis.T)


def whitening(generator: Generator) -> Tensor:
    """[512, 512] A: codes ``w_mean + A u`` of the generator have u of mean 0 and unit covariance.

    As in Wulff and Torralba, "Improving Inversion and Generation Diversity in StyleGAN using a
    Gaussianized Latent Space" (2020), section 3, without their leaky ReLU. From fixed samples.
    """
    fixed = torch.Generator().manual_seed(0)
    z = torch.randn(_SAMPLES, STYLE_WIDTH, generator=fixed).to(generator.w_mean)
    with torch.no_grad():
        centred = generator.map(z) - generator.w_mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        return vectors * values.clamp_min(0).sqrt()


def _codes(generator: Generator, rows: Tensor) -> Tensor:
    """W [B, 512] or live rows [B, n, 512] -> W+ codes [B, L, 512]."""
    if rows.ndim == 2:
        return generator.broadcast(rows)
    mean = rows.mean(1, keepdim=True).expand(-1, generator.num_ws, -1)
    index = torch.tensor(generator.live_rows, device=rows.device)
    return mean.index_copy(1, index, rows)


class _Optimise(Embedder):
    class Options(StageOptions):
        steps: int = Field(120, ge=0, description="optimisation steps")
        perceptual: str = "st_lpips_alex"
        perceptual_size: int = Field(128, ge=32, description="features are compared at this size")
        face_weight: float = Field(
            1.0, ge=0, description="weight of the features of eyes, nose and mouth, at full size"
        )
        pixel_weight: float = Field(3.0, ge=0, description="weight of the mean squared error")
        decay: float = Field(
            0.5, ge=0, le=1, description="share of the steps over which the rate falls to 0"
        )

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.perceptual: Perceptual = context.network("perceptual", self.options.perceptual)

    def _fit(
        self,
        images: Tensor,
        start: Tensor,
        space: Literal["w", "w+"],
        steps: int,
        rate: float,
        pull: float = 0.0,
        prior: float = 0.0,
        basis: Tensor | None = None,
    ) -> Tensor:
        return optimise(
            self.generator,
            self.perceptual,
            images,
            start,
            space=space,
            steps=steps,
            rate=rate,
            pixel_weight=self.options.pixel_weight,
            pull=pull,
            perceptual_size=self.options.perceptual_size,
            face_weight=self.options.face_weight,
            decay=self.options.decay,
            prior=prior,
            basis=basis,
        )


class OptimiseW(_Optimise):
    """`w`: one 512-vector for all layers (StyleGAN2's projector, without noise optimisation).

    With a `prior`, the code moves along the axes on which the generator's own codes vary, each in
    units of its deviation, and is pulled towards the mean. It then cannot imitate what is no face.
    """

    class Options(_Optimise.Options):
        name: str = "w"
        rate: float = Field(0.1, gt=0, description="Adam learning rate")
        prior: float = Field(
            0.0, ge=0, description="weight of the mean square of the whitened code; 0: not whitened"
        )

    def setup(self, context: Context) -> None:
        super().setup(context)
        self._basis = whitening(self.generator) if self.options.prior else None

    def embed(self, images: Tensor) -> Tensor:
        start = self.generator.w_mean.expand(len(images), -1)
        options = self.options
        return self._fit(
            images, start, "w", options.steps, options.rate, prior=options.prior, basis=self._basis
        )


class OptimiseWPlus(_Optimise):
    """`w+`: one 512-vector per layer (Abdal et al., Image2StyleGAN, 2019), after a start in W.

    The first `w_share` of the steps moves all rows together, which keeps the code near those
    the generator was trained on and directions were fitted on.
    """

    class Options(_Optimise.Options):
        name: str = "w+"
        w_share: float = Field(0.25, ge=0, le=1, description="share of the steps spent in W")
        w_rate: float = Field(0.1, gt=0, description="Adam rate of the steps in W")
        rate: float = Field(0.07, gt=0, description="Adam rate of the steps in W+")
        pull: float = Field(0.05, ge=0, description="pull of the rows towards their mean")

    def embed(self, images: Tensor) -> Tensor:
        in_w = round(self.options.steps * self.options.w_share)
        start = self.generator.w_mean.expand(len(images), -1)
        if in_w:
            start = self._fit(images, start, "w", in_w, self.options.w_rate)[:, 0]
        steps = self.options.steps - in_w
        return self._fit(images, start, "w+", steps, self.options.rate, self.options.pull)
