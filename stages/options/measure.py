"""Settings of the stage `measure`, which compares renders with the photograph."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from dhr_batch.stages import registry
from dhr_batch.stages.base import StageOptions

# Scorers that find no face without landmarks.
_OF_LANDMARKS = ("landmarks", "age-gender", "expression", "face-api", "hair")


def _as_names(value: Any) -> Any:
    """Accept a single name for a list of one, and `none` for an empty list."""
    if isinstance(value, str):
        return () if value == "none" else (value,)
    return value


def _in_family(names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """Refuse a name that is not in the network family with the name of the option."""
    for name in names:
        if ":" not in name and name not in registry.TABLE[str(info.field_name)]:
            registry.lookup(str(info.field_name), name)
    return names


Names = Annotated[tuple[str, ...], BeforeValidator(_as_names), AfterValidator(_in_family)]


class StandardOptions(StageOptions):
    """Settings of `Standard`. A missing network is never replaced by another."""

    name: str = "standard"
    perceptual: Names = Field(
        ("st_lpips_alex",),
        description="networks that say how different two pictures look: a list, one name, or none",
    )
    identity: Names = Field(
        ("dlib",),
        description="networks that say whether two pictures show the same person: a list, one "
        "name, or none",
    )
    features: Names = Field(
        (),
        description="networks whose features are stored, to compare sets of pictures (inception: "
        "FID and KID): a list, one name, or none",
    )
    scores: Names = Field(
        ("landmarks", "age-gender"),
        description="what measures how strong an edit is and what else it changes: a list, one "
        "name, or none",
    )
    landmarks: Literal["dlib68", "none"] = Field(
        "dlib68",
        description="network that finds the landmarks of a face; none: scores that need landmarks "
        "are left out",
    )
    size: int = Field(
        256,
        ge=32,
        description="larger pictures are compared at this size in pixels, as in published tables",
    )

    @model_validator(mode="after")
    def _landmarks_for_identity(self) -> StandardOptions:
        if "dlib" in self.identity and self.landmarks == "none":
            raise ValueError("identity needs landmarks: set landmarks=dlib68 or identity=none")
        return self

    @property
    def scorers(self) -> tuple[str, ...]:
        """The scorers that are used."""
        left_out = _OF_LANDMARKS if self.landmarks == "none" else ()
        return tuple(name for name in self.scores if name not in left_out)
