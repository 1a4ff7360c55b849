"""Projection into W with optimised noise maps, by which the published DHR finds hard regions.

This is the projector of StyleGAN2 (Karras et al., 2020, appendix D): a latent w and all noise maps
n are fitted by Adam, while decaying random noise is added to the latent. The loss is

    d(G(w + noise; n), x) + NOISE_WEIGHT sum_n penalty(n)

Only the error of the last render is used. Unlike in the published code, every image has its own
noise penalty and normalisation, so that a result does not depend on the other images of a batch,
and random numbers are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.generators.generator import STYLE_WIDTH, Generator
from dhr_batch.stages.networks.perceptual import Perceptual

LATENT_NOISE, LATENT_NOISE_END = 0.05, 0.75
RAMP_UP, RAMP_DOWN = 0.05, 0.25
NOISE_WEIGHT = 1e5
SAMPLES = 10_000

Draw = Callable[[tuple[int, ...]], Tensor]


def learning_rate(step: int, steps: int, rate: float) -> float:
    """Return the learning rate of a step: linear warm-up from 0 and cosine decay.

    The first step has rate 0, as in the published code, and so has no effect.
    """
    t = step / steps
    decay = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / RAMP_DOWN))
    return rate * decay * min(1.0, t / RAMP_UP)


def latent_noise(step: int, steps: int, w_std: float) -> float:
    """Return the standard deviation of the noise that is added to the latent in a step.

    ``w_std LATENT_NOISE max(0, 1 - t / LATENT_NOISE_END)^2`` for the share t of the steps.
    """
    return w_std * LATENT_NOISE * max(0.0, 1 - step / steps / LATENT_NOISE_END) ** 2


def statistics(generator: Generator, z: Tensor) -> tuple[Tensor, float]:
    """Return the mean latent, [512], and the standard deviation of latents from it.

    Args:
        generator: The generator whose mapping network is used.
        z: Normal vectors, [N, 512].

    Returns:
        The mean of the latents w, and ``sqrt(mean |w - mean|^2)``.
    """
    with torch.no_grad():
        w = torch.cat([generator.map(part) for part in z.split(1000)])
        mean = w.mean(0)
        return mean, float((w - mean).square().sum().div(len(w)).sqrt())


def noise_penalty(maps: Sequence[Tensor]) -> Tensor:
    """Return the noise regularisation of each image, [B].

    It is the squared autocorrelation of each noise map [B, h, w] at a distance of one pixel along
    both axes, summed over maps and over the scales of a pyramid of 2x2 means down to 8 px.
    """
    total = maps[0].new_zeros(len(maps[0]))
    for noise in maps:
        while True:
            for axis in (1, 2):
                total = total + (noise * noise.roll(1, axis)).mean((1, 2)).square()
            if noise.shape[-1] <= 8:
                break
            noise = F.avg_pool2d(noise.unsqueeze(1), 2).squeeze(1)
    return total


class Projector:
    """The optimisation of B images, which `step` advances.

    Args:
        small: Images [B, 3, s, s] in [-1, 1], at the size at which features are compared.
        draw: Function that returns standard normal numbers of a shape [B, ...]. It is called for
            the noise maps and then once per step for the latents, before the first step.
        steps: Length of the schedule.
        rate: Largest learning rate.
        w_mean, w_std: See `statistics`.

    Attributes:
        w: Latents, [B, 512].
        noise: Noise maps by layer, [B, h, w].
        render: Images of the last step before its update, [B, 3, R, R], not clamped.
    """

    def __init__(
        self,
        generator: Generator,
        perceptual: Perceptual,
        small: Tensor,
        draw: Draw,
        *,
        steps: int,
        rate: float,
        w_mean: Tensor,
        w_std: float,
    ) -> None:
        self.generator, self.perceptual = generator, perceptual
        self.steps, self.rate, self.w_std = steps, rate, w_std
        self.size, self.done = small.shape[-1], 0
        self.target = perceptual.features(small)
        batch = len(small)
        self.w = w_mean.detach().repeat(batch, 1).requires_grad_()
        shapes = {name: generator.noise(name).shape for name in generator.noise_names}
        self.noise = {n: draw((batch, *s)).to(small).requires_grad_() for n, s in shapes.items()}
        draws = [draw((batch, STYLE_WIDTH)) for _ in range(steps)]
        self.draws = torch.stack(draws).to(small)
        self.adam = torch.optim.Adam([self.w, *self.noise.values()], lr=rate)

    def synthesize(self, w: Tensor) -> Tensor:
        """Render latents [B, 512] with the current noise maps."""
        delta = {f"{n}.noise": m - self.generator.noise(n) for n, m in self.noise.items()}
        return self.generator.synthesize(self.generator.broadcast(w), delta)

    def step(self) -> tuple[Tensor, Tensor]:
        """Take one step.

        Returns:
            Perceptual distance and noise penalty of each image before the step, [B] each.
        """
        self.adam.param_groups[0]["lr"] = learning_rate(self.done, self.steps, self.rate)
        strength = latent_noise(self.done, self.steps, self.w_std)
        image = self.synthesize(self.w + strength * self.draws[self.done])
        small = image.clamp(-1, 1)
        if image.shape[-1] != self.size:
            small = F.interpolate(small, size=(self.size, self.size), mode="bilinear")
        distance = self.perceptual.distance(small, self.target)
        penalty = noise_penalty([*self.noise.values()])
        moved = [self.w, *self.noise.values()]
        loss = (distance + NOISE_WEIGHT * penalty).sum()
        for value, grad in zip(moved, torch.autograd.grad(loss, moved), strict=True):
            value.grad = grad
        self.adam.step()
        with torch.no_grad():
            for noise in self.noise.values():
                centred = noise - noise.mean((1, 2), keepdim=True)
                noise.copy_(centred / centred.std((1, 2), keepdim=True))
        self.render, self.done = image.detach(), self.done + 1
        return distance.detach(), penalty.detach()
