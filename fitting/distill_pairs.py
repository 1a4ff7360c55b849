"""Training pairs for the distillation to 256 px, and the figures and pictures to evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dhr_batch.pipeline.files import whole
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.perceptual import Perceptual

HELD_OUT = range(10_000_000, 10_000_064)
# Rows of a published W+ code that the head replaces.
HEAD_STYLES = slice(15, 22)


def uniform_in_head(ws: Tensor) -> bool:
    """Return whether a code is constant over the rows that the head replaces.

    Another code has no counterpart at 256 px, because the head uses only one of these rows.
    """
    first = HEAD_STYLES.start
    return bool((ws[:, HEAD_STYLES] == ws[:, first : first + 1]).all())


def codes(net: MobileStyleGAN, seed: int) -> Tensor:
    """Return the W+ code [1, 23, 512] of a seed.

    Held-out seeds give codes in W with truncation 0.7. Training seeds are more varied, as inverted
    photographs are: their truncation is uniform in 0.5..1.0, and 40 % of them are mixed with a
    second latent without truncation.
    """
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(2, 512, generator=g)
    u = torch.rand(3, generator=g)
    w = net.map(z)
    if seed in HELD_OUT:
        return net.broadcast(net.w_mean + 0.7 * (w[:1] - net.w_mean))
    w = net.w_mean + (0.5 + 0.5 * u[0]) * (w - net.w_mean)
    ws = net.broadcast(w[:1]).clone()
    if u[1] < 0.4:
        ws[:, int(u[2] * net.num_ws) :] = w[1]
    return ws


def write_atomically(file: Path, save: Callable[[Path], object]) -> None:
    """Write a file atomically, so that no reader sees part of it."""
    with whole(file) as temporary:
        save(temporary)
        temporary.chmod(0o644)


def _savez(**arrays: np.ndarray) -> Callable[[Path], None]:
    def save(file: Path) -> None:
        with file.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]

    return save


@torch.no_grad()
def pair(teacher: MobileStyleGAN, cache: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Return the code [1, 23, 512] of a seed and the reduced image of the teacher, from the cache.

    The image is [1, 3, 256, 256] and not clamped.
    """
    file = cache / f"{seed}.npz"
    if not file.exists():
        ws = codes(teacher, seed)
        image = F.avg_pool2d(teacher.synthesize(ws), 4)
        arrays = {"ws": ws[0].numpy(), "im": image[0].numpy().astype(np.float16)}
        write_atomically(file, _savez(**arrays))
    with np.load(file) as data:
        return torch.from_numpy(data["ws"])[None], torch.from_numpy(data["im"])[None].float()


@torch.no_grad()
def features(student: MobileStyleGAN, cache: Path, seed: int, ws: Tensor) -> np.ndarray:
    """Return the block-3 features [512, 64, 64] of a code, memory-mapped float16 in the cache."""
    file = cache / f"{seed}.feature.npy"
    if not file.exists():
        x = student.to_feature(ws)[0].numpy().astype(np.float16)

        def save(path: Path) -> None:
            with path.open("wb") as stream:
                np.save(stream, x)

        write_atomically(file, save)
    return np.load(file, mmap_mode="r")


def haar(image: Tensor) -> Tensor:
    """Compute the 2-D Haar transform, [B, C, 2H, 2W] -> [B, 4C, H, W]; see `inverse_haar`."""
    p, q, r, s = F.pixel_unshuffle(image, 2).unflatten(1, (-1, 4)).unbind(2)
    low, high = p + q + r + s, [p + q - r - s, p - q + r - s, p - q - r + s]
    return torch.cat([low, torch.stack(high, 2).flatten(1, 2)], 1) / 2


def coherent(error: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squares of an error [B, 3, H, W] that remain in means over 16 x 16 pixels.

    Returns:
        That of the low wavelet band (a tint) and that of the high bands (a 2 px grid), [B] each.
    """
    means = F.avg_pool2d(haar(error), 8).square()
    low, high = means.split([error.shape[1], 3 * error.shape[1]], 1)
    return low.mean((1, 2, 3)), high.mean((1, 2, 3))


def psnr(image: Tensor, target: Tensor) -> float:
    """Return the PSNR in dB of images in [-1, 1] (peak 2), without clamping."""
    return float(10 * torch.log10(4 / (image - target).square().mean()))


class HeldOutScore(NamedTuple):
    """Comparison of the images of student and teacher for a seed.

    Attributes:
        psnr: PSNR in dB.
        distance: Perceptual distance, or NaN.
        tint, grid: Root mean square of `coherent` errors, in 8-bit grey levels.
    """

    seed: int
    psnr: float
    distance: float
    tint: float
    grid: float


@torch.no_grad()
def held_out_scores(
    student: MobileStyleGAN,
    teacher: MobileStyleGAN,
    cache: Path,
    seeds: Sequence[int] = HELD_OUT,
    perceptual: Perceptual | None = None,
) -> list[HeldOutScore]:
    """Return the scores of the student, one per seed."""
    scores = []
    for seed in seeds:
        ws, target = pair(teacher, cache, seed)
        image, distance = student.synthesize(ws), float("nan")
        if perceptual is not None:
            distance = float(perceptual.distance(image, perceptual.features(target)))
        # A wavelet coefficient is twice the error, and 127.5 grey levels are 1.
        tint, grid = (127.5 / 2 * float(part) ** 0.5 for part in coherent(image - target))
        scores.append(HeldOutScore(seed, psnr(image, target), distance, tint, grid))
    return scores


def summary(scores: Sequence[HeldOutScore]) -> str:
    """Return a line with the means of all scores and the worst seed."""
    worst = min(scores, key=lambda score: score.psnr)
    return (
        f"held out ({len(scores)}): mean {np.mean([s.psnr for s in scores]):.2f} dB, "
        f"worst {worst.psnr:.2f} dB (seed {worst.seed}), "
        f"mean st_lpips_alex {np.mean([s.distance for s in scores]):.4f}, "
        f"tint {np.mean([s.tint for s in scores]):.2f}, "
        f"grid {np.mean([s.grid for s in scores]):.2f} grey levels"
    )


@torch.no_grad()
def contact_sheet(
    student: MobileStyleGAN, teacher: MobileStyleGAN, cache: Path, seeds: Sequence[int]
) -> Image.Image:
    """Return a sheet of student, teacher and difference (x4, grey if equal), one row per seed."""
    rows = []
    for seed in seeds:
        ws, target = pair(teacher, cache, seed)
        image = student.synthesize(ws)
        rows.append(torch.cat([image, target, 4 * (image - target)], 3))
    pixels = (torch.cat(rows, 2)[0].clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())
