"""Editing: move the latent of each image, with a fixed refined generator and mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Discriminator, Field, Tag
from torch import Tensor

from dhr_batch.stages.base import Context, EditedImage, Record, Stage, StageOptions, required
from dhr_batch.stages.edit.base import EditOptions, Move, Styles
from dhr_batch.stages.edit.direction_files import DirectionError, settings_of
from dhr_batch.stages.edit.ganspace import GanspaceOptions
from dhr_batch.stages.edit.styleclip import StyleclipOptions
from dhr_batch.stages.edit.stylespace import StylespaceOptions
from dhr_batch.stages.edit.vectors import DirectionOptions
from dhr_batch.stages.networks.generator import Generator
from dhr_batch.stages.networks.transfers import to_device, to_host
from dhr_batch.stages.refine.base import Refinement, Refiner, mask_of
from dhr_batch.stages.tensors import tensor_to_images

# All kinds of edits. The settings of an edit name exactly one of them.
KINDS: dict[str, type[EditOptions]] = {
    options.kind: options
    for options in (DirectionOptions, GanspaceOptions, StylespaceOptions, StyleclipOptions)
}


def _kind(value: Any) -> str | None:
    """Return the kind of an edit: the only one of `KINDS` that is among its settings."""
    if isinstance(value, EditOptions):
        return value.kind
    found = [kind for kind in KINDS if isinstance(value, dict) and kind in value]
    return found[0] if len(found) == 1 else None


def _settings(value: Any) -> Any:
    """Replace a shipped edit or a YAML file, given as `direction`, by the settings it stands for.

    A stored configuration then says what the edit is.
    """
    name = value.get("direction") if isinstance(value, dict) else None
    found = settings_of(name) if isinstance(name, str) else None
    return value if found is None else found | {k: v for k, v in value.items() if k != "direction"}


AnyEdit = Annotated[
    Annotated[DirectionOptions, Tag(DirectionOptions.kind)]
    | Annotated[GanspaceOptions, Tag(GanspaceOptions.kind)]
    | Annotated[StylespaceOptions, Tag(StylespaceOptions.kind)]
    | Annotated[StyleclipOptions, Tag(StyleclipOptions.kind)],
    Discriminator(
        _kind,
        custom_error_type="kind_of_edit",
        custom_error_message=f"an edit needs exactly one of: {', '.join(KINDS)}",
    ),
    BeforeValidator(_settings),
]


class Directions(Stage):
    """`directions`: edits of the code of each image, rendered with the refinement of the image.

    How the refinement meets the edited code is a matter of the refiner (`Refiner.render_edit`).
    Strength 0 returns the refined image, except in edits whose strength is a target.
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
        edits: tuple[AnyEdit, ...] = (DirectionOptions(direction="smile"),)
        batch: int = Field(default=8, ge=1)

    def models(self, aligned: bool) -> set[str]:
        return super().models(aligned).union(*(edit.models() for edit in self.options.edits))

    def setup(self, context: Context) -> None:
        """Load every edit.

        Raises:
            DirectionError: An edit is unknown, or the generator cannot use it.
        """
        super().setup(context)
        self.generator: Generator = context.network("generator", context.generator)
        self.refiner: Refiner = context.refiner()
        self._at_once = self.options.batch
        self.moves: list[Move] = []
        titles: dict[str, str] = {}
        for options in self.options.edits:
            edit = options.load(context.models)
            name = options.label or edit.name
            if name in titles:
                raise DirectionError(
                    f"edits {titles[name]!r} and {options.title!r} are both called {name!r}",
                    "give one of them a label",
                )
            titles[name] = options.title
            edit.fit(self.generator)
            self.moves += [Move(name, edit, strength) for strength in options.strengths]

    def save_memory(self) -> bool:
        self._at_once //= 2
        return self._at_once > 0

    def process(self, records: Sequence[Record]) -> list[Record]:
        return [replace(r, edits=tuple(self._edit(r))) for r in records]

    @torch.inference_mode()
    def _edit(self, record: Record) -> list[EditedImage]:
        device = self.context.device
        ws = to_device(torch.tensor(required(record.latent)), device).unsqueeze(0)
        refinement, masks = Refinement.of(record, device), mask_of(record, device)
        refined = self.refiner.refined_codes(ws, refinement)
        moved = [move.apply(refined) for move in self.moves]

        images: dict[int, np.ndarray] = {}
        todo = [i for i, move in enumerate(self.moves) if not move.unchanged]
        at_once = max(1, self._at_once)
        for first in range(0, len(todo), at_once):
            chosen = todo[first : first + at_once]
            rendered = self.refiner.render_edit(
                ws,
                torch.cat([moved[i][0] for i in chosen]),
                refinement,
                masks,
                _joined([moved[i][1] for i in chosen]),
            )
            if not torch.isfinite(rendered).all():
                raise ArithmeticError("an edited image is not finite; try smaller strengths")
            images |= zip(chosen, tensor_to_images(rendered), strict=True)
        codes = to_host([code for code, _ in moved])
        return [
            EditedImage(
                move.name,
                move.strength,
                move.edit.sha256,
                codes[i][0],
                images[i] if i in images else required(record.refined),
                start=float(move.edit.start(refined)) if move.edit.absolute else None,
            )
            for i, move in enumerate(self.moves)
        ]


def _joined(offsets: Sequence[Styles]) -> dict[str, Tensor]:
    """Join style offsets [1, C] of B edits to [B, C]; edits without one of a layer have 0."""
    zeros = {name: torch.zeros_like(value) for part in offsets for name, value in part.items()}
    return {
        name: torch.cat([part.get(name, zero) for part in offsets]) for name, zero in zeros.items()
    }
