"""Editing: move the latent of each image, with a fixed refined generator and mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.base import Stage
from dhr_batch.stages.context import Context
from dhr_batch.stages.edit.base import Made, Move, Step
from dhr_batch.stages.edit.direction_files import DirectionError
from dhr_batch.stages.edit.scene import Draft, Scene
from dhr_batch.stages.edit.syntax import SCORER
from dhr_batch.stages.edit.turning import Turning
from dhr_batch.stages.measure.contours import contour_metrics
from dhr_batch.stages.networks.faces.dlib_face import frontal_faces
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.networks.parsers.face_parts import INDEX
from dhr_batch.stages.networks.transfers import to_device, to_host
from dhr_batch.stages.options.edit import DirectionsOptions
from dhr_batch.stages.record import EditedImage, Record, edit_stage, required
from dhr_batch.stages.refine.base import Refinement, Refiner, mask_of
from dhr_batch.stages.tensors import feature_mask, tensor_to_images

# Shares of the way to a strength that are tried in turn if the face is lost at the strength itself.
_CAPS = (0.75, 0.5, 0.25, 0.0)


class Directions(Stage):
    """`directions`: edits of the code of each image, rendered with the refinement of the image.

    The refiner decides how edited codes are rendered with a refinement (`Refiner.render_edit`).
    If it is a feature and the refiner has no rule of its own, mask and feature follow the motion of
    the edit (`edit.scene`). Then a face that the detector finds in the plain render of the code,
    and not in that of the edited code, is lost: the edit is made with a share of its strength at
    which the face is found, and the record gets a note. Strength 0 returns the refined image,
    except in edits whose strength is a target.
    """

    family = "edit"
    needs = frozenset({"latent", "delta", "feature", "state", "mask", "refined"})
    gives = frozenset({"edits"})

    Options = DirectionsOptions

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
        self.kept: Tensor | None = None
        if self.options.rows == "trunk":
            moved = self.generator.trunk_rows
            kept = [[row not in moved] for row in range(self.generator.num_ws)]
            self.kept = torch.tensor(kept, device=context.device)
        self.moves: list[Move] = []
        titles: dict[str, str] = {}
        for options in self.options.edits:
            edit = options.load(context.models)
            name = options.name_of(edit)
            if name in titles:
                raise DirectionError(
                    f"edits {titles[name]!r} and {options.title!r} are both called {name!r}",
                    "give one of them a label",
                )
            titles[name] = options.title
            edit.fit(self.generator)
            if self.kept is not None and not edit.moves(moved):
                raise DirectionError(
                    f"{name} moves only rows that modulate layers behind the feature layer, which "
                    "edit.rows=trunk leaves unchanged",
                    "set edit.rows=all",
                )
            self.moves += [Move(name, edit, strength) for strength in options.strengths]
        if any(move.edit.turns(move.strength) for move in self.moves):
            self.turning = Turning(context.network("scores", SCORER))

    def save_memory(self) -> bool:
        self._at_once //= 2
        return self._at_once > 0

    def process(self, records: Sequence[Record]) -> list[Record]:
        return [self._edit(record) for record in self.counted(records)]

    @torch.inference_mode()
    def _edit(self, record: Record) -> Record:
        device = self.context.device
        ws = to_device(torch.tensor(required(record.latent)), device).unsqueeze(0)
        refinement, masks = Refinement.of([record], device), mask_of(record, device)
        start = self.refiner.refined_codes(ws, refinement)
        todo = {i: move for i, move in enumerate(self.moves) if not move.unchanged}
        scene = self._scene(start, refinement, masks, record) if todo else None

        if scene is None:
            make = partial(self._without_scene, ws, start, refinement, masks)
        else:
            make = partial(self._in_scene, scene, start, record)

        def render(moves: Mapping[int, Move]) -> dict[int, Made]:
            made: dict[int, Made] = {}
            numbers, at_once = list(moves), max(1, self._at_once)
            for first in range(0, len(numbers), at_once):
                chosen = numbers[first : first + at_once]
                made |= zip(chosen, make([moves[i] for i in chosen]), strict=True)
            return made

        turns = {i: move for i, move in todo.items() if move.edit.turns(move.strength)}
        made = render({i: move for i, move in todo.items() if i not in turns})
        if turns:
            made |= self.turning(turns, required(record.refined), render)
        codes = to_host([made[i].code if i in made else start for i in range(len(self.moves))])
        edits = tuple(
            EditedImage(
                move.name,
                move.strength,
                move.edit.sha256,
                codes[i][0],
                made[i].image if i in made else required(record.refined),
                start=float(move.edit.start(start)) if move.edit.absolute else None,
                contours=made[i].contours if i in made else {},
            )
            for i, move in enumerate(self.moves)
        )
        notes = (made[i].note for i in sorted(made) if made[i].note)
        return replace(record, edits=edits, notes=(*record.notes, *notes))

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

    def _without_scene(
        self,
        ws: Tensor,
        start: Tensor,
        refinement: Refinement,
        masks: Tensor,
        moves: Sequence[Move],
    ) -> list[Made]:
        """Render edits by the rule of the refiner."""
        steps = [move.step(start, self.kept) for move in moves]
        codes = torch.cat([step.code for step in steps])
        rendered = self.refiner.render_edit(ws, codes, refinement, masks, _joined(steps))
        pictures = zip(_pictures(rendered), steps, strict=True)
        return [Made(picture, step.code, {}) for picture, step in pictures]

    def _in_scene(
        self, scene: Scene, start: Tensor, record: Record, moves: Sequence[Move]
    ) -> list[Made]:
        """Render edits by the rule that follows their motion."""
        steps = [move.step(start, self.kept) for move in moves]
        drafts = _drafts(scene, steps)
        shares = self._cap(scene, start, moves, steps, drafts) if scene.plain is not None else {}
        drafts = [scene.moved(draft) for draft in drafts]
        pictures = _pictures(scene.finish(drafts, _joined(steps)))
        made = []
        for n, (move, draft, picture) in enumerate(zip(moves, drafts, pictures, strict=True)):
            contours = {}
            if draft.motion is not None and record.refined is not None:
                contours = contour_metrics(picture, record.refined, record.image, draft.motion)
            share = shares.get(n, 1.0)
            note = ""
            if share < 1:
                note = (
                    f"edit: {edit_stage(move.name, move.strength)} loses the face and was made "
                    f"with strength {move.partly(start, share):g}"
                )
            made.append(Made(picture, steps[n].code, contours, share, note))
        return made

    def _cap(
        self,
        scene: Scene,
        start: Tensor,
        moves: Sequence[Move],
        steps: list[Step],
        drafts: list[Draft],
    ) -> dict[int, float]:
        """Replace edits that lose the face by smaller ones, and return their shares of the way."""
        faces = frontal_faces()
        shares: dict[int, float] = {}
        if not faces.sees(required(scene.plain)):
            return shares
        for n, move in enumerate(moves):
            left = iter(_CAPS)
            while shares.get(n, 1) > 0 and not faces.sees(required(drafts[n].plain)):
                shares[n] = next(left)
                steps[n] = move.step(start, self.kept, shares[n])
                drafts[n : n + 1] = _drafts(scene, [steps[n]])
        return shares


def _drafts(scene: Scene, steps: Sequence[Step]) -> list[Draft]:
    codes, behind = (
        torch.cat([getattr(step, part) for step in steps]) for part in ("code", "behind")
    )
    return scene.drafts(codes, behind, _joined(steps))


def _pictures(rendered: Tensor) -> list[np.ndarray]:
    if not torch.isfinite(rendered).all():
        raise ArithmeticError("an edited image is not finite; try smaller strengths")
    return tensor_to_images(rendered)


def _joined(steps: Sequence[Step]) -> dict[str, Tensor]:
    """Join style offsets [1, C] of B edits to [B, C]; edits without one of a layer have 0."""
    zeros = {name: torch.zeros_like(v) for step in steps for name, v in step.styles.items()}
    return {
        name: torch.cat([step.styles.get(name, zero) for step in steps])
        for name, zero in zeros.items()
    }
