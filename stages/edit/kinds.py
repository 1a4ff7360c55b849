"""All kinds of edits. The settings of an edit name exactly one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Discriminator, Field, FiniteFloat, Tag, field_validator

from dhr_batch.stages.edit import syntax
from dhr_batch.stages.edit.base import Edit, EditOptions
from dhr_batch.stages.edit.combined import Combined
from dhr_batch.stages.edit.direction_files import settings_of
from dhr_batch.stages.edit.ganspace import GanspaceOptions
from dhr_batch.stages.edit.styleclip import StyleclipOptions
from dhr_batch.stages.edit.stylespace import StylespaceOptions
from dhr_batch.stages.edit.vectors import DirectionOptions

_KINDS = ("direction", "ganspace", "stylespace", "styleclip", "combined")


def _kind(value: Any) -> str | None:
    """Return the kind of an edit: the only one of `_KINDS` that is among its settings."""
    if isinstance(value, EditOptions):
        return value.kind
    found = [kind for kind in _KINDS if isinstance(value, dict) and kind in value]
    return found[0] if len(found) == 1 else None


def _settings(value: Any) -> Any:
    """Replace what a direction names by the settings it stands for.

    It may name a shipped edit, a YAML file, or edits with their strengths (`syntax`). A stored
    configuration then says what the edit is.
    """
    name = value.get("direction") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return value
    others = {k: v for k, v in value.items() if k != "direction"}
    try:
        (found,) = syntax.settings([syntax.parse(name)])
    except syntax.NotAnEdit:
        settings = settings_of(name)
        return value if settings is None else settings | others
    if twice := found.keys() & others.keys():
        raise ValueError(f"{name!r} gives {', '.join(twice)} already; leave one of the two out")
    return _settings(found | others)


class CombinedOptions(EditOptions):
    """Settings of several edits in one picture.

    Attributes:
        combined: The edits, in the order in which they are applied, each with one strength.
        strengths: Shares of the way to these strengths, one for each picture.
    """

    kind: ClassVar[str] = "combined"
    combined: tuple[AnyEdit, ...] = Field(min_length=2)
    strengths: tuple[FiniteFloat, ...] = Field(default=(1.0,), min_length=1)

    @field_validator("combined")
    @classmethod
    def _one_strength(cls, edits: tuple[EditOptions, ...]) -> tuple[EditOptions, ...]:
        for edit in edits:
            if len(edit.strengths) != 1:
                raise ValueError(f"{edit.title} needs exactly one strength in a combination")
        return edits

    @property
    def title(self) -> str:
        return syntax.joined(f"{edit.title}={edit.strengths[0]:g}" for edit in self.combined)

    def models(self) -> set[str]:
        return set().union(*(edit.models() for edit in self.combined))

    def load(self, models: Callable[[str], Path]) -> Edit:
        edits = [options.load(models) for options in self.combined]
        pairs = list(zip(self.combined, edits, strict=True))
        terms = [options.term(edit) for options, edit in pairs]
        return Combined([(edit, options.strengths[0]) for options, edit in pairs], terms)


AnyEdit = Annotated[
    Annotated[DirectionOptions, Tag(DirectionOptions.kind)]
    | Annotated[GanspaceOptions, Tag(GanspaceOptions.kind)]
    | Annotated[StylespaceOptions, Tag(StylespaceOptions.kind)]
    | Annotated[StyleclipOptions, Tag(StyleclipOptions.kind)]
    | Annotated[CombinedOptions, Tag(CombinedOptions.kind)],
    Discriminator(
        _kind,
        custom_error_type="kind_of_edit",
        custom_error_message=f"an edit needs exactly one of: {', '.join(_KINDS)}",
    ),
    BeforeValidator(_settings),
]
CombinedOptions.model_rebuild()
