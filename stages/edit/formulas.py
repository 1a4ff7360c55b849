"""Edit directions in W and W+: the arithmetic of edits, and directions from the weights alone.

Importing this module does not import torch. The arithmetic works on numpy arrays and on tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from dhr_batch.stages.networks.generators.generator import Generator

STYLE_WIDTH = 512


def interfacegan(ws: Tensor, direction: Tensor, strength: float) -> Tensor:
    """Return ``w + strength n`` for codes w and a direction n.

    Shen et al., "Interpreting the Latent Space of GANs for Semantic Face Editing" (2020), eq. 4.

    Args:
        ws: W+ codes, [B, L, 512].
        direction: [512] or [1, 512] for all rows alike, or [L, 512] or [1, L, 512].
        strength: How far to go, in lengths of the direction.

    Raises:
        ValueError: The direction has another shape.

    Example:
        >>> interfacegan(np.zeros((1, 2, 512)), np.ones(512), 3.0)[0, :, 0]
        array([3., 3.])
    """
    shape, rows = tuple(direction.shape), ws.shape[1]
    if shape not in {(STYLE_WIDTH,), (1, STYLE_WIDTH), (rows, STYLE_WIDTH), (1, rows, STYLE_WIDTH)}:
        raise ValueError(f"a direction of shape {list(shape)} does not fit codes of {rows} rows")
    return ws + strength * direction


def ganspace_coordinate(ws: Tensor, mean: Tensor, component: Tensor, std: float) -> Tensor:
    """Return the coordinates ``(w_0 - mean) . v / std`` of codes along a component, [B].

    The arguments are those of `ganspace`.
    """
    return (ws[:, 0] - mean.reshape(STYLE_WIDTH)) @ component.reshape(STYLE_WIDTH) / std


def ganspace(
    ws: Tensor, mean: Tensor, component: Tensor, std: float, rows: Tensor, strength: float
) -> Tensor:
    """Set the coordinate of W+ codes along a principal component.

    ``w' = w + (strength - c) std v`` with ``c = (w_0 - mean) . v / std``, w_0 being row 0. Härkönen
    et al., "GANSpace: Discovering Interpretable GAN Controls" (2020), as used for inversions.

    Args:
        ws: W+ codes, [B, L, 512].
        mean: Mean latent, [512].
        component: Principal component v of length 1, [512].
        std: Standard deviation of latents along v.
        rows: 1 for rows that are changed, else 0, [L, 1].
        strength: The new coordinate, in standard deviations from the mean.
    """
    present = ganspace_coordinate(ws, mean, component, std)
    step = (strength - present)[:, None, None] * (std * component.reshape(STYLE_WIDTH))
    return ws + rows * step


def orthogonalise(direction: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """Return the part of a direction that is orthogonal to other directions.

    This is the conditional manipulation of InterFaceGAN for any number of conditions. The result is
    not rescaled.

    Args:
        direction: [512].
        conditions: Directions along which nothing should change, [K, 512].

    Raises:
        ValueError: The direction is a combination of the conditions.

    Example:
        >>> orthogonalise(np.array([1.0, 1.0]), np.array([[0.0, 2.0]])).round(6)
        array([1., 0.])
    """
    if not len(conditions):
        return direction
    basis = np.asarray(conditions, np.float64).T
    fit = np.linalg.lstsq(basis, np.asarray(direction, np.float64), rcond=None)[0]
    rest = direction - basis @ fit
    if np.linalg.norm(rest) < 1e-6 * np.linalg.norm(direction):
        raise ValueError(
            "the direction is a combination of its conditions, so nothing of it is left"
        )
    return rest.astype(direction.dtype)


def style_weights(generator: Generator, row: int) -> list[str]:
    """Return the names of the modulation weights that a row of a W+ code reaches."""
    return [f"{name}.modulation.weight" for name in generator.modulated(row)]


def sefa(
    generator: Generator, rows: Sequence[int], count: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions that change the styles of some rows most, strongest first.

    These are the eigenvectors of A^T A, A being the modulation weights of the rows, each channel
    scaled to length 1. Shen and Zhou, "Closed-Form Factorization of Latent Semantics in GANs"
    (2021), eq. 4.

    Args:
        generator: The generator whose weights are read.
        rows: Rows of a W+ code.
        count: Number of directions.

    Returns:
        Directions of length 1 that move only these rows, float32 [count, num_ws, 512], their
        largest entry being positive; and the eigenvalues, [count].

    Raises:
        ValueError: A row reaches no layer, or no row is given.
    """
    dead = [r for r in rows if not style_weights(generator, r)]
    if dead or not len(rows):
        raise ValueError(f"no layer uses the rows {dead}; choose from {generator.live_rows}")
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
    """Principal components of latents w.

    Attributes:
        mean: Mean latent, [512].
        components: Components of length 1, [K, 512].
        std: Standard deviations along them, [K], in descending order.
    """

    mean: np.ndarray
    components: np.ndarray
    std: np.ndarray


def ganspace_fit(
    generator: Generator, samples: int = 100_000, components: int = 80, seed: int = 0
) -> PrincipalComponents:
    """Return the principal components of seeded latents w (GANSpace, 2020).

    Args:
        generator: The generator whose mapping network is used.
        samples: Number of latents.
        components: Number of components, at most 512.
        seed: Seed of the latents.

    Raises:
        ValueError: There are too few samples, or too many components.
    """
    import torch

    if samples < 2 or not 0 < components <= STYLE_WIDTH:
        raise ValueError(f"{components} components cannot be computed from {samples} samples")
    source = torch.Generator().manual_seed(seed)
    device = generator.w_mean.device
    total = np.zeros(STYLE_WIDTH)
    outer = np.zeros((STYLE_WIDTH, STYLE_WIDTH))
    # Sums are relative to the stored mean, because the covariance would lose digits otherwise.
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
    """Return the rows with a positive largest entry, because the sign of eigenvectors is free."""
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    return vectors * np.sign(largest)
