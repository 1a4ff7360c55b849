"""The interface of edits: their settings, and what they do to the codes of a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dhr_batch.stages.networks.generators.generator import Generator

# Offsets of the styles of layers, `LAYER.style` -> [B, C].
Styles = Mapping[str, "Tensor"]


class EditOptions(BaseModel, ABC):
    """Settings of one edit. The first field of a subclass, whose name is its kind, selects it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: ClassVar[str]
    strengths: tuple[FiniteFloat, ...] = Field(
        default=(-2.0, -1.0, 1.0, 2.0),
        min_length=1,
        description="how far to go, once for each picture, in units of what is edited",
    )
    label: str = Field(
        default="",
        description="name of the edit in tables and files; by default that of what is edited",
    )

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

    @property
    def title(self) -> str:
        """What is edited, for messages and as the key of its checksum in the plan."""
        return str(getattr(self, self.kind))

    def name_of(self, edit: Edit) -> str:
        """Return the name of the loaded edit in tables and files."""
        return self.label or edit.name

    def term(self, edit: Edit) -> str:
        """Return the text of the loaded edit at its only strength, as `syntax` has it."""
        return f"{self.label or edit.name}={self.strengths[0]:g}"

    def models(self) -> set[str]:
        """Return the names of the models that `load` reads."""
        return set()

    def check(self) -> None:
        """Check what can be checked without torch, so that a wrong name is reported at once.

        Raises:
            DirectionError: As `load` does.
        """

    @abstractmethod
    def load(self, models: Callable[[str], Path]) -> Edit:
        """Read the files of the edit.

        Args:
            models: Function from the name of a model to its file, as in `Context`.

        Raises:
            DirectionError: A file is missing or is not what the edit needs.
        """


@dataclass(frozen=True)
class Step:
    """What edits make of one code.

    Attributes:
        code: The edited code, [1, L, 512].
        behind: The code for layers behind the feature layer, [1, L, 512].
        styles: Offsets of styles, each [1, C].
    """

    code: Tensor
    behind: Tensor
    styles: Styles = field(default_factory=dict)


class Edit(ABC):
    """An edit of any code of a generator.

    Attributes:
        absolute: Whether a strength is a target and not a distance. If not, strength 0 leaves every
            code unchanged.
        names_rows: Whether the edit itself says which rows it changes. Then the setting `rows` of
            the stage does not limit it.
        name: Name of the edit.
        sha256: Checksum of its numbers, which is independent of the format of its file.
    """

    absolute: ClassVar[bool] = False
    names_rows: ClassVar[bool] = False
    name: str
    sha256: str

    @abstractmethod
    def fit(self, generator: Generator) -> None:
        """Prepare the edit for the codes of a generator, on its device. Called before `apply`.

        Raises:
            DirectionError: The generator cannot use the edit.
        """

    @abstractmethod
    def apply(self, ws: Tensor, strength: float) -> tuple[Tensor, Styles]:
        """Return the edited codes [B, L, 512] of codes ws, and the style offsets, often none."""

    def start(self, ws: Tensor) -> Tensor:
        """Return the strengths [B] with which `apply` leaves the codes ws unchanged."""
        return ws.new_zeros(len(ws))

    def moves(self, rows: Sequence[int]) -> bool:
        """Whether the edit, if it does not name its rows itself, moves any of these rows."""
        return True

    def turns(self, strength: float) -> dict[str, float]:
        """Return the degrees by which the edit is to turn the head, by axis (see `turning`)."""
        return {}

    def corrected(self, factors: Mapping[str, float]) -> Edit:
        """Return an edit that turns the head further, by a factor for each of its axes."""
        return self

    def partly(self, ws: Tensor, strength: float, share: float) -> float:
        """Return the strength at a share of the way to a strength, for the codes ws of one image.

        Args:
            ws: [B, L, 512].
            strength: The strength at the end of the way.
            share: The share of the way, from the unchanged code.
        """
        if share == 1:
            return strength
        start = float(self.start(ws).mean())
        return start + share * (strength - start)

    def step(self, before: Step, strength: float, kept: Tensor | None) -> Step:
        """Add the edit to what other edits have made of a code.

        Args:
            before: The code so far.
            strength: How far to go.
            kept: True for rows that are not changed, unless the edit names its rows itself, bool
                [L, 1]. Layers behind the feature layer are then rendered with the earlier code as
                well, because a row may modulate layers on both sides of it. None if edits move all
                rows.
        """
        code, offsets = self.apply(before.code, strength)
        styles = {name: before.styles.get(name, 0) + offset for name, offset in offsets.items()}
        made = Step(code, code, {**before.styles, **styles})
        if kept is None or (self.names_rows and before.behind is before.code):
            return made
        if self.names_rows:
            return replace(made, behind=before.behind + (code - before.code))
        # Unlike an assignment to chosen rows, this does not wait for a GPU.
        return replace(made, code=before.code.where(kept, code), behind=before.behind)


@dataclass(frozen=True, slots=True)
class Move:
    """One render to make: an edit at one strength.

    Attributes:
        name: Name of the edit in tables and files.
        edit: The edit.
        strength: How far to go.
    """

    name: str
    edit: Edit
    strength: float

    @property
    def unchanged(self) -> bool:
        """Whether the refined picture is the result for any code."""
        return self.strength == 0 and not self.edit.absolute

    def step(self, ws: Tensor, kept: Tensor | None, share: float = 1) -> Step:
        """Return what the edit makes of the codes ws of one image, [1, L, 512].

        Args:
            ws: The codes.
            kept: See `Edit.step`.
            share: The share of the way to the strength, from the unchanged code.
        """
        return self.edit.step(Step(ws, ws), self.partly(ws, share), kept)

    def partly(self, ws: Tensor, share: float) -> float:
        """Return the strength at a share of the way, for the codes ws of one image."""
        return self.edit.partly(ws, self.strength, share)


@dataclass(frozen=True)
class Made:
    """An edited picture.

    Attributes:
        image: uint8 [R, R, 3].
        code: The edited code, [1, L, 512].
        contours: Metrics by name that need the motion of the edit.
        share: The share of the requested strength that was applied, less than 1 if the face would
            have been lost.
        note: A remark for the user, or empty.
    """

    image: np.ndarray
    code: Tensor
    contours: dict[str, float]
    share: float = 1
    note: str = ""
