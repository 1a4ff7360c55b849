"""The interface of edits: their settings, and what they do to the codes of a generator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

if TYPE_CHECKING:
    from torch import Tensor

    from dhr_batch.stages.networks.generator import Generator

# Offsets of the styles of layers, `LAYER.style` -> [B, C].
Styles = Mapping[str, "Tensor"]


class EditOptions(BaseModel, ABC):
    """Settings of one edit. The first field of a subclass, whose name is its kind, selects it.

    Attributes:
        strengths: How far to go, once for each picture.
        label: Name of the edit in tables and files; by default that of what is edited.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ClassVar[str]
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

    @property
    def title(self) -> str:
        """What is edited, for messages and as the key of its checksum in the plan."""
        return str(getattr(self, self.kind))

    def models(self) -> set[str]:
        """Return the names of the models that `load` reads."""
        return set()

    @abstractmethod
    def load(self, models: Callable[[str], Path]) -> Edit:
        """Read the files of the edit.

        Args:
            models: Function from the name of a model to its file, as in `Context`.

        Raises:
            DirectionError: A file is missing or is not what the edit needs.
        """


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

    def apply(self, ws: Tensor, share: float = 1) -> tuple[Tensor, Styles]:
        """Return the edited codes and style offsets of codes ws, as `Edit.apply` does.

        Args:
            ws: [B, L, 512].
            share: The share of the way to the strength, from the unchanged code.
        """
        return self.edit.apply(ws, self.strength if share == 1 else self.partly(ws, share))

    def partly(self, ws: Tensor, share: float) -> float:
        """Return the strength at a share of the way, for the codes ws of one image."""
        start = float(self.edit.start(ws).mean())
        return start + share * (self.strength - start)
