"""The training of the StyleGAN2 test bed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.fitting.averaged import AveragedAdam
from dhr_batch.fitting.distill_pairs import write_atomically
from dhr_batch.fitting.test_bed.pairs import Pairs, levels
from dhr_batch.fitting.test_bed.student import Coordinates, dense
from dhr_batch.fitting.test_bed.weights import fill, rms, start
from dhr_batch.stages.embed.optimise import face_region
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2

# Sizes that are trained until each share of the time.
STAGES = ((16, 0.1), (32, 0.45), (64, 0.8), (128, 1.0))
# Weight of the images of smaller sizes, which StyleGAN2 sums up.
SKIP_WEIGHT = 0.2
# Largest share of the time that is spent on new pairs.
PAIRS_SHARE = 0.25
PUBLISH_SECONDS = 480
CORES = 2


def _scale(name: str, tensor: Tensor) -> float:
    """Return the scale of a weight, to which its rate is relative."""
    starts_near_0 = float(tensor.abs().max()) < 0.1 and "modulation" not in name
    return 0.3 if starts_near_0 else rms(tensor)


class Trainer(AveragedAdam):
    """Adam with steps relative to each tensor, on all sizes up to one, with averaged weights.

    Demodulation makes the scale of kernels irrelevant, so they are kept at unit variance.

    Args:
        net: The student, for its sizes and noise.
        space: Coordinates of W, in which the modulations are trained.
        rate: Largest step relative to a weight.
    """

    def __init__(self, net: StyleGAN2, space: Coordinates, rate: float) -> None:
        self.net, self.space = net, space
        tensors = start(net, space)
        scales = {name: _scale(name, tensor) for name, tensor in tensors.items()}
        super().__init__(tensors, scales, rate, fused=True)

    def step(
        self, ws: Tensor, images: Tensor, progress: float, dtype: torch.dtype = torch.bfloat16
    ) -> float:
        """Update the weights once.

        The loss of an image is the root mean square error, of the whole and of the inner face, so
        that easy images count as much as hard ones.

        Args:
            ws: Codes, [B, L, 512]; only the rows of layers up to the size of the images are used.
            images: Target images in [-1, 1], [B, 3, size, size].
            progress: Share of the training that is done, 0..1, which sets the rate.
            dtype: Of the convolutions.

        Returns:
            The mean PSNR of the batch in dB.
        """
        parts = [(w, x, dtype) for w, x in zip(ws.chunk(CORES), images.chunk(CORES), strict=True)]
        # One part per core is faster than operations with several threads, above all on a machine
        # that is shared: the parts wait for each other once per step.
        with ThreadPoolExecutor(CORES) as pool:
            results = list(pool.map(lambda part: self._gradients(*part), parts))
        for tensor, *gradients in zip(self.trained(), *(g for _, g in results), strict=True):
            present = [gradient for gradient in gradients if gradient is not None]
            tensor.grad = sum(present) / len(parts) if present else None
        self.update(progress)
        return sum(score for score, _ in results) / len(parts)

    def trained(self) -> list[Tensor]:
        """Return the weights in training."""
        return list(self.tensors.values())

    def _gradients(
        self, ws: Tensor, images: Tensor, dtype: torch.dtype
    ) -> tuple[float, tuple[Tensor | None, ...]]:
        """Return the mean PSNR of a batch and the gradient of each weight, None if it has none."""
        rows = 2 * int(math.log2(images.shape[-1])) - 2
        outputs = dense(self.net, self.space.encode(ws[:, :rows]), self.tensors, dtype)
        loss, target = torch.zeros(()), images
        for output in reversed(outputs):
            target = F.avg_pool2d(target, target.shape[-1] // output.shape[-1])
            error = output - target
            parts = [error, face_region(error)] if output is outputs[-1] else [error]
            for part in parts:
                root = (part.square().mean((1, 2, 3)) + 1e-6).sqrt().mean()
                loss = loss + (1.0 if output is outputs[-1] else SKIP_WEIGHT) * root
        gradients = torch.autograd.grad(loss, self.trained(), allow_unused=True)
        error = (outputs[-1].detach() - images).square().mean((1, 2, 3))
        return float((10 * torch.log10(4 / error)).mean()), gradients

    def constrain(self) -> None:
        """Bring kernels back to unit variance, which demodulation makes free."""
        for tensor in self.tensors.values():
            if tensor.ndim == 4:
                tensor /= tensor.square().mean((1, 2, 3), keepdim=True).sqrt()


def size_at(progress: float, resolution: int) -> int:
    """Return the size that is trained at a share of the time.

    Example:
        >>> [size_at(p, 64) for p in (0.0, 0.2, 0.5, 0.9)]
        [16, 32, 64, 64]
    """
    return next(min(size, resolution) for size, end in STAGES if progress < end or end == 1)


def train(
    trainer: Trainer,
    pairs: Pairs,
    limit: float,
    batch: int,
    count: int,
    checkpoint: Path,
    publish: Callable[[StyleGAN2], None],
) -> None:
    """Train for `limit` seconds in total, including earlier parts of a resumed run.

    Args:
        trainer: The student in training.
        pairs: Pairs, of which up to `count` are rendered on the way.
        limit: Seconds.
        batch: Images per step.
        count: Pairs in the end.
        checkpoint: File of the state.
        publish: Called every few minutes with the network of the averaged weights, rounded to half
            precision.
    """
    rng = np.random.default_rng(trainer.steps)
    before, began, published = trainer.seconds, time.perf_counter(), trainer.seconds
    rendering, recent = 0.0, []

    def save() -> None:
        write_atomically(checkpoint, lambda path: torch.save(trainer.state(), path))
        publish(fill(trainer.net, trainer.average, trainer.space))

    while trainer.seconds < limit:
        if len(pairs) < count and rendering <= PAIRS_SHARE * (trainer.seconds - before):
            start_of_pairs = time.perf_counter()
            pairs.add()
            rendering += time.perf_counter() - start_of_pairs
        progress = trainer.seconds / limit
        size = size_at(progress, trainer.net.resolution)
        chosen = torch.from_numpy(rng.choice(len(pairs), batch))
        recent.append(trainer.step(pairs.ws[chosen], levels(pairs.images[chosen], size), progress))
        trainer.seconds = before + time.perf_counter() - began
        if trainer.steps % 100 == 0:
            click.echo(
                f"{trainer.seconds / 60:5.1f} min  step {trainer.steps}  {size} px  "
                f"{len(pairs)} pairs  train {np.mean(recent[-100:]):.2f} dB"
            )
        if trainer.seconds - published > PUBLISH_SECONDS:
            published = trainer.seconds
            save()
    save()
