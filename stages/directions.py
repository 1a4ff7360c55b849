"""Edit directions in W and W+: the arithmetic of an edit, and directions from the weights alone.

Needs no torch to import; the arithmetic works on numpy arrays and on tensors alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from dhr_batch.stages.networks.generator import Generator

STYLE_WIDTH = 512


def interfacegan(ws: Tensor, direction: Tensor, strength: float) -> Tensor:
    """Move W+ codes [B, L, 512] by `strength` along [512], [1, 512], [L, 512] or [1, L, 512].

    Shen et al., "Interpreting the Latent Space of GANs for Semantic Face Editing" (2020), eq. 4.
    """
    shape, rows = tuple(direction.shape), ws.shape[1]
    if shape not in {(STYLE_WIDTH,), (1, STYLE_WIDTH), (rows, STYLE_WIDTH), (1, rows, STYLE_WIDTH)}:
        raise ValueError(f"direction of shape {list(shape)} does not fit codes of {rows} rows")
    return ws + strength * direction


def ganspace(
    ws: Tensor,
    mean: Tensor,
    component: Tensor,
    std: float,
    start: int,
    end: int,
    strength: float,
) -> Tensor:
    """Move rows `start` to `end - 1` of W+ codes [B, L, 512] to a coordinate along `component`.

    strength: the target in standard deviations from the mean, not a step; the present coordinate
    is read from row 0. Härkönen et al., "GANSpace" (2020), as published for StyleGAN2 inversions.
    """
    if not 0 <= start < end <= ws.shape[1]:
        raise ValueError(f"rows {start}..{end} do not fit codes of {ws.shape[1]} rows")
    mean, component = mean.reshape(STYLE_WIDTH), component.reshape(STYLE_WIDTH)
    present = (ws[:, 0] - mean) @ component / std
    step = (strength - present)[:, None, None] * (std * component)
    return _concatenate([ws[:, :start], ws[:, start:end] + step, ws[:, end:]])


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, 1)
    import torch

    return torch.cat(parts, 1)


def orthogonalise(direction: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """The part of `direction` [512] orthogonal to every row of `conditions` [K, 512].

    InterFaceGAN's conditional manipulation for any number of conditions. The length shrinks by the
    part that is removed. Raises ValueError when nothing is left.
    """
    if not len(conditions):
        return direction
    basis = np.asarray(conditions, np.float64).T
    fit = np.linalg.lstsq(basis, np.asarray(direction, np.float64), rcond=None)[0]
    rest = direction - basis @ fit
    if np.linalg.norm(rest) < 1e-6 * np.linalg.norm(direction):
        raise ValueError("the direction lies in the span of its conditions: nothing is left of it")
    return rest.astype(direction.dtype)


def style_weights(generator: Generator, row: int) -> list[str]:
    """Names of the modulation weights that row `row` of a W+ code drives; empty for a dead row."""
    return [f"{name}.modulation.weight" for name in generator.modulated(row)]


def sefa(
    generator: Generator, rows: Sequence[int], count: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Directions that change the styles of `rows` most, strongest first.

    Eigenvectors of A^T A, A being the modulation weights of the rows, one unit vector a channel
    (Shen and Zhou, "Closed-Form Factorization of Latent Semantics in GANs", 2021, eq. 4). Returns
    ([count, num_ws, 512] that move exactly these rows, unit vectors; [count] eigenvalues). The
    entry of largest magnitude is positive. Raises ValueError for a row that reaches no layer.
    """
    dead = [r for r in rows if not style_weights(generator, r)]
    if dead or not len(rows):
        raise ValueError(f"rows {dead} reach no layer; choose from {generator.live_rows}")
    names = [n for row in rows for n in style_weights(generator, row)]
    weights = [generator.weight(n).detach().cpu().double().numpy() for n in names]
    a = np.concatenate(weights)
    a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12)
    values, vectors = np.linalg.eigh(a.T @ a)
    values, vectors = values[::-1][:count], _signed(vectors.T[::-1][:count])
    directions = np.zeros((len(vectors), generator.num_ws, STYLE_WIDTH), np.float32)
    directions[:, list(rows)] = vectors[:, None]
    return directions, values


@dataclass(frozen=True, slots=True)
class PrincipalComponents:
    """PCA of mapped latents. mean: [512]; components: unit rows [K, 512]; std: [K], descending."""

    mean: np.ndarray
    components: np.ndarray
    std: np.ndarray


def ganspace_fit(
    generator: Generator, samples: int = 100_000, components: int = 80, seed: int = 0
) -> PrincipalComponents:
    """Principal components of `samples` mapped latents w (GANSpace, 2020)."""
    import torch

    if samples < 2 or not 0 < components <= STYLE_WIDTH:
        raise ValueError(f"cannot take {components} components of {samples} samples")
    source = torch.Generator().manual_seed(seed)
    device = generator.w_mean.device
    total = np.zeros(STYLE_WIDTH)
    outer = np.zeros((STYLE_WIDTH, STYLE_WIDTH))
    # Sums are taken about the stored mean: the covariance would lose digits about zero.
    origin = generator.w_mean.cpu().double().numpy()
    with torch.inference_mode():
        for first in range(0, samples, 4096):
            z = torch.randn(min(4096, samples - first), STYLE_WIDTH, generator=source)
            w = generator.map(z.to(device)).cpu().double().numpy() - origin
            total += w.sum(0)
            outer += w.T @ w
    shift = total / samples
    covariance = (outer - samples * np.outer(shift, shift)) / (samples - 1)
    values, vectors = np.linalg.eigh(covariance)
    chosen = _signed(vectors.T[::-1][:components])
    std = np.sqrt(np.maximum(values[::-1][:components], 0))
    return PrincipalComponents(
        (origin + shift).astype(np.float32), chosen.astype(np.float32), std.astype(np.float32)
    )


def _signed(vectors: np.ndarray) -> np.ndarray:
    """Rows with their largest entry positive: eigenvectors have no sign of their own."""
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    return vectors * np.sign(largest)
