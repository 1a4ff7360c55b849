"""Editing: move the latent of each image, with a fixed refined generator and mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Discriminator, Field, Tag
from torch import Tensor

from dhr_batch.stages.base import (
    Context,
    EditedImage,
    Record,
    Stage,
    StageOptions,
    edit_stage,
    required,
)
from dhr_batch.stages.edit.base import Edit, EditOptions, Move, Styles
from dhr_batch.stages.edit.direction_files import DirectionError, settings_of
from dhr_batch.stages.edit.ganspace import GanspaceOptions
from dhr_batch.stages.edit.scene import Draft, Follow, Scene
from dhr_batch.stages.edit.styleclip import StyleclipOptions
from dhr_batch.stages.edit.stylespace import StylespaceOptions
from dhr_batch.stages.edit.vectors import DirectionOptions, Vector
from dhr_batch.stages.measure.contours import contour_metrics
from dhr_batch.stages.networks.dlib_face import frontal_faces
from dhr_batch.stages.networks.face_parts import INDEX
from dhr_batch.stages.networks.generator import Generator
from dhr_batch.stages.networks.transfers import to_device, to_host
from dhr_batch.stages.refine.base import Refinement, Refiner, mask_of
from dhr_batch.stages.tensors import feature_mask, tensor_to_images

# Shares of the way to a strength that are tried in turn if the face is lost at the strength itself.
_CAPS = (0.75, 0.5, 0.25, 0.0)

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
    If it is a feature and the refiner has no rule of its own, mask and feature follow the motion of
    the edit (`edit.scene`). Then a face that the detector finds in the plain render of the code,
    and not in that of the edited code, is lost: the edit goes only as far as it is found, and the
    record gets a note. Strength 0 returns the refined image, except in edits whose strength is a
    target.
    """

    family = "edit"
    needs = frozenset({"latent", "delta", "feature", "state", "mask", "refined"})
    gives = frozenset({"edits"})

    class Options(StageOptions):
        """Settings of `Directions`.

        Attributes:
            edits: The edits of every image.
            rows: Rows of the code that an edit moves: all, or those of the trunk. The other rows,
                which modulate only layers behind the feature layer, would recolour the feature.
                An edit that names its rows or layers itself is not limited.
            follow: What follows the motion of an edit: a layer for the person and one for the
                background, everything alike, or nothing.
            batch: Number of renders at a time.
        """

        earlier: ClassVar = {"rows": "all", "follow": "none"}

        name: str = "directions"
        edits: tuple[AnyEdit, ...] = (DirectionOptions(direction="smile"),)
        rows: Literal["trunk", "all"] = "trunk"
        follow: Follow = "layers"
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
        self.limited: list[int] = []
        if self.options.rows == "trunk":
            moved = self.generator.trunk_rows
            self.limited = [r for r in range(self.generator.num_ws) if r not in moved]
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
            if self.options.rows == "trunk":
                _check_rows(edit, self.generator)
            self.moves += [Move(name, edit, strength) for strength in options.strengths]

    def save_memory(self) -> bool:
        self._at_once //= 2
        return self._at_once > 0

    def process(self, records: Sequence[Record]) -> list[Record]:
        return [self._edit(record) for record in records]

    @torch.inference_mode()
    def _edit(self, record: Record) -> Record:
        device = self.context.device
        ws = to_device(torch.tensor(required(record.latent)), device).unsqueeze(0)
        refinement, masks = Refinement.of(record, device), mask_of(record, device)
        start = self.refiner.refined_codes(ws, refinement)
        steps = [self._step(move, start) for move in self.moves]

        images: dict[int, np.ndarray] = {}
        metrics: dict[int, dict[str, float]] = {}
        notes: list[str] = []
        todo = [i for i, move in enumerate(self.moves) if not move.unchanged]
        at_once = max(1, self._at_once)
        scene = self._scene(start, refinement, masks, record) if todo else None
        for first in range(0, len(todo), at_once):
            chosen = todo[first : first + at_once]
            if scene is None:
                codes = torch.cat([steps[i].code for i in chosen])
                styles = _joined([steps[i].styles for i in chosen])
                rendered = self.refiner.render_edit(ws, codes, refinement, masks, styles)
            else:
                drafts = self._drafts(scene, steps, chosen)
                if scene.plain is not None:
                    notes += self._cap(scene, start, steps, chosen, drafts)
                drafts = [scene.moved(draft) for draft in drafts]
                rendered = scene.finish(drafts, _joined([steps[i].styles for i in chosen]))
            if not torch.isfinite(rendered).all():
                raise ArithmeticError("an edited image is not finite; try smaller strengths")
            images |= zip(chosen, tensor_to_images(rendered), strict=True)
            if scene is not None and record.refined is not None:
                metrics |= {
                    i: contour_metrics(images[i], record.refined, record.image, draft.motion)
                    for i, draft in zip(chosen, drafts, strict=True)
                    if draft.motion is not None
                }
        hosted = to_host([step.code for step in steps])
        edits = tuple(
            EditedImage(
                move.name,
                move.strength,
                move.edit.sha256,
                hosted[i][0],
                images[i] if i in images else required(record.refined),
                start=float(move.edit.start(start)) if move.edit.absolute else None,
                contours=metrics.get(i, {}),
            )
            for i, move in enumerate(self.moves)
        )
        return replace(record, edits=edits, notes=(*record.notes, *notes))

    def _step(self, move: Move, start: Tensor, share: float = 1) -> _Step:
        """Return an edit of the code `start`, [1, L, 512], within the rows that edits may move."""
        code, styles = move.apply(start, share)
        if move.edit.names_rows:
            return _Step(code, code, styles)
        code = code.clone()
        code[:, self.limited] = start[:, self.limited]
        # A row may modulate layers on both sides of the feature layer.
        return _Step(code, start if self.options.rows == "trunk" else code, styles)

    def _scene(
        self, start: Tensor, refinement: Refinement, masks: Tensor, record: Record
    ) -> Scene | None:
        """Return the image from which edits start, or None if `render_edit` is to render them."""
        options, kind = self.options, type(self.refiner)
        own_rule = (kind.render, kind.render_edit) != (Refiner.render, Refiner.render_edit)
        if own_rule or (options.rows, options.follow) == ("all", "none"):
            return None
        shared = self.refiner.unpacked(refinement)
        if (feature := shared.feature) is None:
            return None
        soft = feature_mask(masks, (feature.shape[2], feature.shape[3]))
        person = None if record.labels is None else record.labels != INDEX["background"]
        return Scene(self.generator, start, shared.delta, feature, soft, person, options.follow)

    def _drafts(self, scene: Scene, steps: Sequence[_Step], chosen: Sequence[int]) -> list[Draft]:
        return scene.drafts(
            torch.cat([steps[i].code for i in chosen]),
            torch.cat([steps[i].behind for i in chosen]),
            _joined([steps[i].styles for i in chosen]),
        )

    def _cap(
        self,
        scene: Scene,
        start: Tensor,
        steps: list[_Step],
        chosen: Sequence[int],
        drafts: list[Draft],
    ) -> list[str]:
        """Replace edits that lose the face by smaller ones, and return a note for each."""
        faces = frontal_faces()
        if not faces.sees(required(scene.plain)):
            return []
        notes = []
        for place, i in enumerate(chosen):
            move = self.moves[i]
            shares = iter(_CAPS)
            share = 1.0
            while share > 0 and not faces.sees(required(drafts[place].plain)):
                share = next(shares)
                steps[i] = self._step(move, start, share)
                drafts[place : place + 1] = self._drafts(scene, steps, [i])
            if share < 1:
                notes.append(
                    f"edit: {edit_stage(move.name, move.strength)} loses the face and was made "
                    f"with strength {move.partly(start, share):g}"
                )
        return notes


@dataclass(frozen=True)
class _Step:
    """What an edit makes of one code.

    Attributes:
        code: The edited code, [1, L, 512].
        behind: The code for layers behind the feature layer, [1, L, 512].
        styles: Offsets of styles.
    """

    code: Tensor
    behind: Tensor
    styles: Styles


def _check_rows(edit: Edit, generator: Generator) -> None:
    """Refuse a direction of which nothing would be left without the rows behind the trunk."""
    rows = edit.rows if isinstance(edit, Vector) else None
    if rows is not None and bool(rows.any()) and not bool(rows[generator.trunk_rows].any()):
        raise DirectionError(
            f"{edit.name} moves only rows that modulate layers behind the feature layer, which "
            "edit.rows=trunk leaves unchanged",
            "set edit.rows=all",
        )


def _joined(offsets: Sequence[Styles]) -> dict[str, Tensor]:
    """Join style offsets [1, C] of B edits to [B, C]; edits without one of a layer have 0."""
    zeros = {name: torch.zeros_like(value) for part in offsets for name, value in part.items()}
    return {
        name: torch.cat([part.get(name, zero) for part in offsets]) for name, zero in zeros.items()
    }
