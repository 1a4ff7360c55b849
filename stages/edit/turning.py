"""Edits of the pose whose strengths are degrees.

How far a strength turns a head differs between faces. So the edit is rendered, the pose in the
picture is measured, and the edit is rendered again, closer to what is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dhr_batch.stages.edit.base import Edit, Made, Move, Styles
from dhr_batch.stages.edit.syntax import AXES
from dhr_batch.stages.networks.faces.identity import Portrait
from dhr_batch.stages.record import edit_stage

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dhr_batch.stages.measure.face_scores import Scorer
    from dhr_batch.stages.networks.generators.generator import Generator

# Degrees by which strength 1 of a direction is taken to turn a head in the first render. The
# shipped directions turn it by 5 to 10.
_AT_FIRST = 10.0
# The most further renders of an edit, and the error in degrees below which none is needed.
_RENDERS, _CLOSE = 2, 1.0
# The error in degrees above which the image gets a note.
_MISSED = 3.0
# The largest factor by which the strength is changed after a render, up or down.
_MOST = 2.5


class Turn(Edit):
    """An edit along a direction of the pose, by degrees.

    Args:
        edit: The edit along the direction.
        axis: One of `AXES`.
        degrees: How far strength 1 of that edit is taken to turn the head.
    """

    def __init__(self, edit: Edit, axis: str, degrees: float = _AT_FIRST) -> None:
        self.edit, self.axis, self.degrees = edit, axis, degrees
        self.name, self.sha256 = f"{axis}_degrees", edit.sha256

    def fit(self, generator: Generator) -> None:
        self.edit.fit(generator)

    def moves(self, rows: Sequence[int]) -> bool:
        return self.edit.moves(rows)

    def apply(self, ws: Tensor, strength: float) -> tuple[Tensor, Styles]:
        return self.edit.apply(ws, strength / self.degrees)

    def turns(self, strength: float) -> dict[str, float]:
        return {self.axis: strength}

    def corrected(self, factors: Mapping[str, float]) -> Turn:
        return Turn(self.edit, self.axis, self.degrees / factors[self.axis])


class Turning:
    """Renders edits until they turn the head by the requested degrees.

    Args:
        scorer: Measures the pose.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(
        self,
        moves: Mapping[int, Move],
        refined: np.ndarray,
        render: Callable[[Mapping[int, Move]], dict[int, Made]],
    ) -> dict[int, Made]:
        """Return the pictures of edits by their numbers, each the closest of its renders.

        Args:
            moves: The edits.
            refined: The refined picture, uint8 [R, R, 3].
            render: Renders edits.
        """
        before = self._pose(refined)
        if before is None:
            return {i: _noted(m, moves[i], math.inf) for i, m in render(moves).items()}
        best: dict[int, tuple[float, Made]] = {}
        left = dict(moves)
        for _ in range(1 + _RENDERS):
            made = render(left)
            for i, move in list(left.items()):
                wanted = move.edit.turns(move.strength)
                after = self._pose(made[i].image)
                if after is None:
                    missed, factors = math.inf, dict.fromkeys(wanted, 1 / _MOST)
                else:
                    turned = {axis: after[axis] - before[axis] for axis in wanted}
                    missed = max(abs(wanted[axis] - turned[axis]) for axis in wanted)
                    factors = {axis: _factor(wanted[axis], turned[axis]) for axis in wanted}
                if i not in best or missed < best[i][0]:
                    best[i] = missed, made[i]
                left[i] = replace(move, edit=move.edit.corrected(factors))
                if missed <= _CLOSE or made[i].share < 1:
                    del left[i]
            if not left:
                break
        return {i: _noted(made, moves[i], missed) for i, (missed, made) in best.items()}

    def _pose(self, picture: np.ndarray) -> dict[str, float] | None:
        found = self.scorer.score(Portrait(picture))
        return found and {axis: found[score] for axis, score in AXES.items()}


def _factor(wanted: float, turned: float) -> float:
    """Return the factor of the strength with which an edit turns the head as far as wanted."""
    if wanted == 0:
        return 1.0
    return min(max(wanted / turned, 1 / _MOST), _MOST) if wanted * turned > 0 else _MOST


def _noted(made: Made, move: Move, missed: float) -> Made:
    """Add a note if an edit misses its degrees by much; by infinity if the pose is unknown."""
    if missed <= _MISSED:
        return made
    what = f"misses its degrees by {missed:.0f}"
    if missed == math.inf:
        what = "is not calibrated, as the pose could not be measured"
    note = f"edit: {edit_stage(move.name, move.strength)} {what}"
    return replace(made, note="; ".join(filter(None, (made.note, note))))
