"""GANSpace's edit as published: set the coordinate of a code along a principal component of W.

Härkönen et al., "GANSpace: Discovering Interpretable GAN Controls" (2020), in the form in which
encoders for inversion use it (`formulas.ganspace`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.edit import array_files
from dhr_batch.stages.edit.base import Edit, Styles
from dhr_batch.stages.edit.direction_files import (
    DAMAGED,
    PUBLISHED_ROWS,
    STYLE_WIDTH,
    DirectionError,
    digest,
)
from dhr_batch.stages.edit.formulas import PrincipalComponents, ganspace, ganspace_coordinate
from dhr_batch.stages.networks.files import checkpoints, weight_files
from dhr_batch.stages.networks.generators.generator import Generator

FILES = "give ffhq_pca.pt as published, or the .npz that `dhr-batch edits ganspace` writes"


class Component(Edit):
    """The coordinate along one principal component becomes the strength.

    Args:
        pca: The principal components.
        number: Number of the component.
        rows: See `GanspaceOptions`.
        path: Where they were read, for messages.

    Raises:
        DirectionError: There is no such component.
    """

    absolute = True
    names_rows = True

    def __init__(
        self, pca: PrincipalComponents, number: int, rows: tuple[int, int], path: Path
    ) -> None:
        if number >= len(pca.components):
            raise DirectionError(
                f"{path}: there is no component {number}",
                f"choose one from 0 to {len(pca.components) - 1}",
            )
        self.mean, self.component = pca.mean, pca.components[number]
        self.std = float(pca.std[number])
        self.published_rows = rows
        self.name = f"pc{number}"
        numbers = np.concatenate([self.mean, self.component, [self.std], rows])
        self.sha256 = digest(numbers)

    def fit(self, generator: Generator) -> None:
        mask = self._rows_of(generator)
        if not any(mask[row] for row in generator.live_rows):
            first, last = self.published_rows
            raise DirectionError(
                f"{self.name}: rows {first} to {last - 1} of StyleGAN2 have no counterpart in this "
                f"generator, whose codes have {generator.num_ws} rows",
                "choose rows of layers that it has",
            )
        device = generator.w_mean.device
        self._mask = mask.to(device)
        self._mean = torch.from_numpy(self.mean).to(device)
        self._component = torch.from_numpy(self.component).to(device)

    def _rows_of(self, generator: Generator) -> Tensor:
        """Return 1 for the rows of the generator that are changed, else 0, [num_ws, 1]."""
        first, last = self.published_rows
        chosen = torch.zeros(PUBLISHED_ROWS, STYLE_WIDTH)
        chosen[first:last] = 1
        try:
            return generator.expand_direction(chosen)[:, :1]
        except ValueError:
            # A StyleGAN2 of another size has the same first rows.
            own = chosen[: generator.num_ws, :1]
            return own if last <= generator.num_ws else torch.zeros_like(own)

    def apply(self, ws: Tensor, strength: float) -> tuple[Tensor, Styles]:
        edited = ganspace(ws, self._mean, self._component, self.std, self._mask, strength)
        return edited, {}

    def start(self, ws: Tensor) -> Tensor:
        return ganspace_coordinate(ws, self._mean, self._component, self.std)


def read(path: Path) -> PrincipalComponents:
    """Read principal components of W from a file.

    Args:
        path: A .pt or .pth file as published, a dictionary of the tensors `mean` [1, 512], `comp`
            [K, 1, 512] and `std` [K], or an .npz file with arrays of these names.

    Raises:
        DirectionError: The file is missing or damaged, or holds something else.
    """
    if not path.is_file():
        raise DirectionError(f"{path}: the file does not exist", FILES)
    try:
        found = _read_npz(path) if path.suffix.lower() == ".npz" else weight_files.read(path)
        mean, components, std = (_array(found, key) for key in ("mean", "comp", "std"))
        mean, components = mean.reshape(STYLE_WIDTH), components.reshape(-1, STYLE_WIDTH)
        std = std.reshape(len(components))
    except DAMAGED as error:
        raise DirectionError(
            f"{path}: it cannot be read as principal components: {error}", FILES
        ) from error
    if not all(np.isfinite(a).all() for a in (mean, components, std)) or not (std > 0).all():
        raise DirectionError(
            f"{path}: numbers are not finite, or a standard deviation is not positive", FILES
        )
    return PrincipalComponents(mean, components, std)


def _read_npz(path: Path) -> dict[str, Any]:
    def check(shape: tuple[int, ...], _: np.dtype) -> None:
        if math.prod(shape) > STYLE_WIDTH * STYLE_WIDTH:
            raise ValueError(f"an array of shape {list(shape)} is too large")

    return {
        name: array_files.read_npz(path, name, check)
        for name in array_files.names(path)
        if name in ("mean", "comp", "std")
    }


def _array(found: Mapping[str, Any], key: str) -> np.ndarray:
    value = found.get(key)
    if isinstance(value, checkpoints.Inert):
        value = checkpoints.array(value)
    value = value.detach().float().numpy() if isinstance(value, Tensor) else value
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"no array {key!r}, only: {weight_files.first_few(sorted(map(str, found)))}"
        )
    return np.ascontiguousarray(value, np.float32)
