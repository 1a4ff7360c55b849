"""Edits along a direction in W or W+: ``w' = w + strength * direction``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dhr_batch.stages.edit.base import Edit, Styles
from dhr_batch.stages.edit.direction_files import Direction, DirectionError
from dhr_batch.stages.edit.formulas import interfacegan
from dhr_batch.stages.networks.generators.generator import Generator


class Vector(Edit):
    """InterFaceGAN's edit, for any direction."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.name, self.sha256 = direction.name, direction.sha256

    def fit(self, generator: Generator) -> None:
        what = f"{self.direction.name} ({Path(self.direction.source).name})"
        try:
            rows = generator.expand_direction(torch.tensor(self.direction.array))
        except ValueError as error:
            raise DirectionError(f"{what}: {error}") from error
        if not rows[generator.live_rows].any():
            raise DirectionError(
                f"{what}: it moves only rows that modulate no layer of this generator",
                "choose a direction of rows that do",
            )
        self.rows = rows.to(generator.w_mean.device)

    def apply(self, ws: Tensor, strength: float) -> tuple[Tensor, Styles]:
        return interfacegan(ws, self.rows, strength), {}

    def moves(self, rows: Sequence[int]) -> bool:
        return bool(self.rows[list(rows)].any())
