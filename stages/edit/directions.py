"""Editing: move the latent along directions, with a fixed refined generator and mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator
from torch import Tensor

from dhr_batch.stages.base import Context, EditedImage, Record, Stage, StageOptions, required
from dhr_batch.stages.edit.direction_files import Direction, DirectionError, resolve
from dhr_batch.stages.edit.formulas import interfacegan
from dhr_batch.stages.networks.generator import Generator
from dhr_batch.stages.refine.base import Refinement, Refiner, mask_of
from dhr_batch.stages.tensors import tensor_to_images


class EditOptions(BaseModel):
    """Settings of one edit.

    Attributes:
        direction: A shipped name or a file.
        strengths: Multiples of the direction.
        label: Name of the edit in tables and files; by default that of the direction.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    direction: str
    strengths: tuple[FiniteFloat, ...] = Field(default=(-2.0, -1.0, 1.0, 2.0), min_length=1)
    label: str = ""

    @field_validator("strengths")
    @classmethod
    def _distinct(cls, strengths: tuple[float, ...]) -> tuple[float, ...]:
        # The metrics table names an edit by its strength as printed, in which -0 is 0.
        if len({f"{strength + 0.0:g}" for strength in strengths}) != len(strengths):
            raise ValueError(
                f"strengths must differ in their first six digits, which name the edits in tables: "
                f"{list(strengths)}"
            )
        return strengths


@dataclass(frozen=True, slots=True)
class Move:
    """One render to make.

    Attributes:
        name, sha256: Name of the edit and checksum of its direction.
        direction: The direction for every row of the generator, [num_ws, 512].
        strength: How far to go along it.
    """

    name: str
    sha256: str
    direction: Tensor
    strength: float


class Directions(Stage):
    """`directions`: ``w' = w + strength * direction``, rendered with the refinement of the image.

    How the refinement meets the edited code is a matter of the refiner (`Refiner.render_edit`).
    Strength 0 returns the refined image.
    """

    family = "edit"
    needs = frozenset({"latent", "delta", "feature", "state", "mask", "refined"})
    gives = frozenset({"edits"})

    class Options(StageOptions):
        """Settings of `Directions`.

        Attributes:
            edits: The edits of every image.
            batch: Number of renders at a time.
        """

        name: str = "directions"
        edits: tuple[EditOptions, ...] = (EditOptions(direction="smile"),)
        batch: int = Field(default=8, ge=1)

    def setup(self, context: Context) -> None:
        """Resolve every direction.

        Raises:
            DirectionError: A direction is unknown, or the generator cannot use it.
        """
        super().setup(context)
        self.generator: Generator = context.network("generator", context.generator)
        self.refiner: Refiner = context.refiner()
        self.moves: list[Move] = []
        names: dict[str, str] = {}
        for options in self.options.edits:
            direction = resolve(options.direction)
            name = options.label or direction.name
            if name in names:
                raise DirectionError(
                    f"edits {names[name]!r} and {options.direction!r} are both called {name!r}",
                    "give one of them a label",
                )
            names[name] = options.direction
            rows = expand(self.generator, direction).to(context.device)
            self.moves += [Move(name, direction.sha256, rows, s) for s in options.strengths]

    def process(self, records: Sequence[Record]) -> list[Record]:
        return [replace(r, edits=tuple(self._edit(r))) for r in records]

    @torch.inference_mode()
    def _edit(self, record: Record) -> list[EditedImage]:
        device = self.context.device
        ws = torch.tensor(required(record.latent)).to(device).unsqueeze(0)
        codes = [interfacegan(ws, move.direction, move.strength)[0] for move in self.moves]
        refinement, masks = Refinement.of(record, device), mask_of(record, device)

        images: dict[int, np.ndarray] = {}
        todo = [i for i, move in enumerate(self.moves) if move.strength != 0]
        for first in range(0, len(todo), self.options.batch):
            chosen = todo[first : first + self.options.batch]
            count = len(chosen)
            rendered = self.refiner.render_edit(
                ws.expand(count, -1, -1),
                torch.stack([codes[i] for i in chosen]),
                refinement.expand(count),
                masks.expand(count, -1, -1, -1),
            )
            if not torch.isfinite(rendered).all():
                raise ArithmeticError("an edited image is not finite; try smaller strengths")
            images |= zip(chosen, tensor_to_images(rendered), strict=True)
        return [
            EditedImage(
                move.name,
                move.strength,
                move.sha256,
                codes[i].cpu().numpy(),
                images[i] if i in images else required(record.refined),
            )
            for i, move in enumerate(self.moves)
        ]


def expand(generator: Generator, direction: Direction) -> Tensor:
    """Return the direction for every row of the codes of a generator, [num_ws, 512], on the CPU.

    Raises:
        DirectionError: The rows of the direction do not fit the generator.
    """
    try:
        return generator.expand_direction(torch.from_numpy(direction.array))
    except ValueError as error:
        raise DirectionError(
            f"{direction.name} ({Path(direction.source).name}): {error}"
        ) from error
