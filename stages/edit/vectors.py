"""Edits along a direction in W or W+: ``w' = w + strength * direction``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dhr_batch.stages.edit.base import Edit, EditOptions, Styles
from dhr_batch.stages.edit.direction_files import Direction, DirectionError, resolve
from dhr_batch.stages.edit.formulas import interfacegan
from dhr_batch.stages.edit.turning import AXES, SCORER, Turn
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.registry import MODELS


class DirectionOptions(EditOptions):
    """Settings of an edit along a direction.

    Attributes:
        direction: A shipped name or a file. `Directions` replaces names of other shipped edits, and
            YAML files, by their settings.
        strengths: Multiples of the direction, or degrees.
        unit: `deg` if strengths are degrees by which the head turns. The direction or the label is
            then called yaw, pitch or roll.
    """

    kind: ClassVar[str] = "direction"
    direction: str
    unit: Literal["", "deg"] = ""

    def models(self) -> set[str]:
        return set(MODELS["scores", SCORER]) if self.unit else set()

    def name_of(self, edit: Edit) -> str:
        return edit.name if isinstance(edit, Turn) and self.label in AXES else super().name_of(edit)

    def term(self, edit: Edit) -> str:
        name = edit.axis if isinstance(edit, Turn) else self.label or edit.name
        return f"{name}={self.strengths[0]:g}{self.unit}"

    def load(self, models: Callable[[str], Path]) -> Edit:
        vector = Vector(resolve(self.direction))
        if not self.unit:
            return vector
        axis = next((name for name in (vector.name, self.label) if name in AXES), None)
        if axis is None:
            raise DirectionError(
                f"{self.direction} does not say which angle its degrees are of",
                f"give it one of the labels: {', '.join(AXES)}",
            )
        return Turn(vector, axis)


class Vector(Edit):
    """InterFaceGAN's edit, for any direction."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.name, self.sha256 = direction.name, direction.sha256

    def fit(self, generator: Generator) -> None:
        direction = self.direction
        try:
            rows = generator.expand_direction(torch.tensor(direction.array))
        except ValueError as error:
            raise DirectionError(
                f"{direction.name} ({Path(direction.source).name}): {error}"
            ) from error
        self.rows = rows.to(generator.w_mean.device)

    def apply(self, ws: Tensor, strength: float) -> tuple[Tensor, Styles]:
        return interfacegan(ws, self.rows, strength), {}

    def moves(self, rows: Sequence[int]) -> bool:
        return bool(self.rows[list(rows)].any()) or not bool(self.rows.any())
