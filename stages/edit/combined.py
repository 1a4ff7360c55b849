"""Several edits in one picture, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING

from dhr_batch.stages.edit import syntax
from dhr_batch.stages.edit.base import Edit, Step, Styles

if TYPE_CHECKING:
    from torch import Tensor

    from dhr_batch.stages.networks.generators.generator import Generator


class Combined(Edit):
    """Edits of one code, each at its own strength.

    Strength 1 makes each edit at its strength, and another strength goes that share of the way.

    Args:
        parts: The edits with their strengths, in the order in which they are applied.
        terms: The text of each (`syntax.Term`).
    """

    def __init__(self, parts: Sequence[tuple[Edit, float]], terms: Sequence[str]) -> None:
        self.parts = tuple(parts)
        self.name = syntax.joined(terms)
        text = " ".join(f"{edit.sha256} {strength!r}" for edit, strength in parts)
        self.sha256 = hashlib.sha256(f"combined {text}".encode()).hexdigest()

    def fit(self, generator: Generator) -> None:
        for edit, _ in self.parts:
            edit.fit(generator)

    def moves(self, rows: Sequence[int]) -> bool:
        return all(edit.moves(rows) for edit, _ in self.parts)

    def turns(self, strength: float) -> dict[str, float]:
        return {
            axis: strength * degrees
            for edit, own in self.parts
            for axis, degrees in edit.turns(own).items()
        }

    def corrected(self, factors: Mapping[str, float]) -> Combined:
        made = copy(self)
        made.parts = tuple((edit.corrected(factors), own) for edit, own in self.parts)
        return made

    def apply(self, ws: Tensor, strength: float) -> tuple[Tensor, Styles]:
        made = self.step(Step(ws, ws), strength, None)
        return made.code, made.styles

    def step(self, before: Step, strength: float, kept: Tensor | None) -> Step:
        for edit, own in self.parts:
            before = edit.step(before, edit.partly(before.code, own, strength), kept)
        return before
