"""Settings of the stage `edit`, and of all kinds of edits. An edit names exactly one kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, FiniteFloat, Tag, field_validator

from dhr_batch.stages.base import StageOptions
from dhr_batch.stages.edit import syntax
from dhr_batch.stages.edit.base import Edit, EditOptions
from dhr_batch.stages.edit.direction_files import (
    PUBLISHED_ROWS,
    Direction,
    DirectionError,
    resolve,
    settings_of,
)
from dhr_batch.stages.registry import MODELS

_SUFFIXES = (".pt", ".pth", ".npz")
_RELEVANCE, _DEVIATIONS = "styleclip-fs3", "styleclip-std"

Follow = Literal["layers", "warp", "none"]


class DirectionOptions(EditOptions):
    """Settings of an edit along a direction. Strengths are its multiples, or degrees.

    Names of other shipped edits, and YAML files, are replaced by their settings.
    """

    kind: ClassVar[str] = "direction"
    direction: str = Field(
        description="what to change: a name in `dhr-batch edits list`, or a file of your own"
    )
    unit: Literal["", "deg"] = Field(
        default="",
        description="`deg` if strengths are degrees by which the head turns; the direction or the "
        "label is then yaw, pitch or roll",
    )

    def models(self) -> set[str]:
        return set(MODELS["scores", syntax.SCORER]) if self.unit else set()

    def name_of(self, edit: Edit) -> str:
        axis = getattr(edit, "axis", None)
        return edit.name if axis and self.label in syntax.AXES else super().name_of(edit)

    def term(self, edit: Edit) -> str:
        name = getattr(edit, "axis", None) or self.label or edit.name
        return f"{name}={self.strengths[0]:g}{self.unit}"

    def check(self) -> None:
        self._axis(resolve(self.direction))

    def _axis(self, direction: Direction) -> str | None:
        """Return the angle that strengths are degrees of; None if they have no unit.

        Raises:
            DirectionError: Nothing says which angle it is.
        """
        if not self.unit:
            return None
        for name in (direction.name, self.label):
            if name in syntax.AXES:
                return name
        raise DirectionError(
            f"{self.direction} takes no degrees, as it does not say which angle it turns",
            f"leave out the unit; label a direction of yours {' or '.join(syntax.AXES)}",
        )

    def load(self, models: Callable[[str], Path]) -> Edit:
        from dhr_batch.stages.edit.turning import Turn
        from dhr_batch.stages.edit.vectors import Vector

        direction = resolve(self.direction)
        axis = self._axis(direction)
        return Turn(Vector(direction), axis) if axis else Vector(direction)


class GanspaceOptions(EditOptions):
    """Settings of an edit along a principal component.

    A strength is the new coordinate of the code along the component, in standard deviations from
    the mean code. It is a target: 0 is the mean face, not the unchanged one.
    """

    kind: ClassVar[str] = "ganspace"
    ganspace: str = Field(
        description="principal components of the codes: a file (.pt, .pth, .npz), or a model"
    )
    component: int = Field(ge=0, description="number of the component, from 0")
    rows: tuple[int, int] = Field(
        description="first row of the code to change and the row after the last, as published: "
        "[7, 8] is row 7 alone; rows are those of StyleGAN2, and other generators change those "
        "that correspond"
    )

    @field_validator("rows")
    @classmethod
    def _in_code(cls, rows: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= rows[0] < rows[1] <= PUBLISHED_ROWS:
            raise ValueError(
                f"rows are [A, B] with 0 <= A < B <= {PUBLISHED_ROWS}, the rows A to B - 1"
            )
        return rows

    @property
    def title(self) -> str:
        return f"{self.ganspace} {self.component} [{self.rows[0]}, {self.rows[1]}]"

    @property
    def _is_file(self) -> bool:
        return Path(self.ganspace).suffix.lower() in _SUFFIXES

    def models(self) -> set[str]:
        return set() if self._is_file else {self.ganspace}

    def load(self, models: Callable[[str], Path]) -> Edit:
        from dhr_batch.stages.edit.ganspace import Component, read

        path = Path(os.path.expanduser(self.ganspace)) if self._is_file else models(self.ganspace)
        return Component(read(path), self.component, self.rows, path)


class StylespaceOptions(EditOptions):
    """Settings of an edit of channels in StyleSpace. Strengths are standard deviations of each."""

    kind: ClassVar[str] = "stylespace"
    stylespace: tuple[str, ...] = Field(
        min_length=1,
        description="channels as LAYER/CHANNEL, one text or several, with a minus sign in front to "
        "turn a channel around; LAYER is the name of a layer, or its number in the published order "
        "of StyleGAN2 at 1024 px, in which 1, 4, 7 and so on are image layers",
    )
    std: str = Field(
        "",
        description="file with standard deviations of channels as StyleCLIP publishes it "
        "(S_mean_std), for StyleGAN2-FFHQ; without it, they are computed from codes",
    )

    @field_validator("stylespace", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("stylespace")
    @classmethod
    def _valid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(syntax.Channel.parse(text)) for text in value)

    @property
    def title(self) -> str:
        return f"{', '.join(self.stylespace)} {self.std}".strip()

    def load(self, models: Callable[[str], Path]) -> Edit:
        from dhr_batch.stages.edit.stylespace import Channels, read_std

        std = read_std(Path(os.path.expanduser(self.std))) if self.std else None
        return Channels([syntax.Channel.parse(text) for text in self.stylespace], std)


class StyleclipOptions(EditOptions):
    """Settings of an edit towards a text.

    Strengths are the published alpha: the offset of the most relevant channel, in its standard
    deviations.
    """

    kind: ClassVar[str] = "styleclip"
    styleclip: str = Field(
        description="an .npz file with features of the texts `target` and `neutral`, as "
        "`dhr-batch edits text-features` writes it"
    )
    beta: float = Field(
        0.15,
        ge=0,
        le=1,
        description="least relevance of a channel for the text; larger values change less else, "
        "but are weaker; published are 0.08 to 0.3",
    )
    fs3: str = Field(
        "",
        description="file with the relevance of the channels; by default the model styleclip-fs3",
    )
    std: str = Field(
        "",
        description="file with standard deviations of the channels (S_mean_std); by default the "
        "model styleclip-std",
    )

    @property
    def title(self) -> str:
        return " ".join(filter(None, (self.styleclip, f"{self.beta:g}", self.fs3, self.std)))

    def models(self) -> set[str]:
        files = {_RELEVANCE: self.fs3, _DEVIATIONS: self.std}
        return {model for model, file in files.items() if not file}

    def load(self, models: Callable[[str], Path]) -> Edit:
        from dhr_batch.stages.edit.styleclip import GlobalDirection, read_features, read_relevance
        from dhr_batch.stages.edit.stylespace import read_std

        def path(file: str, model: str) -> Path:
            return Path(os.path.expanduser(file)) if file else models(model)

        features = Path(os.path.expanduser(self.styleclip))
        return GlobalDirection(
            features.stem,
            *read_features(features),
            read_relevance(path(self.fs3, _RELEVANCE)),
            read_std(path(self.std, _DEVIATIONS)),
            self.beta,
        )


def _kind(value: Any) -> str | None:
    """Return the kind of an edit: the only one of `KINDS` that is among its settings."""
    if isinstance(value, EditOptions):
        return value.kind
    found = [kind for kind in KINDS if isinstance(value, dict) and kind in value]
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
    """Settings of several edits in one picture."""

    kind: ClassVar[str] = "combined"
    combined: tuple[AnyEdit, ...] = Field(
        min_length=2,
        description="edits of one picture, in the order in which they are applied, each with one "
        "strength",
    )
    strengths: tuple[FiniteFloat, ...] = Field(
        (1.0,),
        min_length=1,
        description="shares of the way to the strengths of the edits, one for each picture",
    )

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

    def check(self) -> None:
        for edit in self.combined:
            edit.check()

    def load(self, models: Callable[[str], Path]) -> Edit:
        from dhr_batch.stages.edit.combined import Combined

        edits = [options.load(models) for options in self.combined]
        pairs = list(zip(self.combined, edits, strict=True))
        terms = [options.term(edit) for options, edit in pairs]
        return Combined([(edit, options.strengths[0]) for options, edit in pairs], terms)


_ALL = (DirectionOptions, GanspaceOptions, StylespaceOptions, StyleclipOptions, CombinedOptions)
KINDS: dict[str, type[EditOptions]] = {options.kind: options for options in _ALL}
AnyEdit = Annotated[
    Annotated[DirectionOptions, Tag(DirectionOptions.kind)]
    | Annotated[GanspaceOptions, Tag(GanspaceOptions.kind)]
    | Annotated[StylespaceOptions, Tag(StylespaceOptions.kind)]
    | Annotated[StyleclipOptions, Tag(StyleclipOptions.kind)]
    | Annotated[CombinedOptions, Tag(CombinedOptions.kind)],
    Discriminator(
        _kind,
        custom_error_type="kind_of_edit",
        custom_error_message=f"an edit needs exactly one of: {', '.join(KINDS)}",
    ),
    BeforeValidator(_settings),
]
CombinedOptions.model_rebuild()


class DirectionsOptions(StageOptions):
    """Settings of `Directions`."""

    earlier: ClassVar = {"rows": "all", "follow": "none"}

    name: str = "directions"
    edits: tuple[AnyEdit, ...] = Field(
        (DirectionOptions(direction="smile"),),
        description="the edits of every image, each with its strengths: one picture per strength",
    )
    rows: Literal["trunk", "all"] = Field(
        "trunk",
        description="what an edit moves in the code of an image: the rows in front of the replaced "
        "feature layer (trunk), or all, of which the others recolour that layer; an edit that "
        "names its own rows or layers is not limited",
    )
    follow: Follow = Field(
        "layers",
        description="how mask and replaced feature follow what an edit moves: the person moves "
        "and the background stays (layers), everything moves (warp), or nothing does (none)",
    )
    batch: int = Field(8, ge=1, description="number of edited pictures computed at a time")
