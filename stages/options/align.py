"""Settings of the stage `align`, which reads photographs and cuts out their faces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dhr_batch.stages.base import StageOptions

# Larger images are refused by all that decodes photographs, unless the setting says otherwise.
MAX_MEGAPIXELS = 64.0


class FFHQAlignOptions(StageOptions):
    name: str = "ffhq"
    landmarks: Literal["mtcnn5", "dlib68"] = Field(
        "mtcnn5",
        description="points by which a face is turned upright and cut out: five of the face "
        "detector MTCNN, or 68 of dlib",
    )
    face: (
        Literal["largest", "central", "only", "all"] | Annotated[int, Field(ge=0, strict=True)]
    ) = Field(
        "largest",
        description="which of several faces to take; `only` refuses photographs with more than "
        "one, `all` takes each, and a number takes one by its size, from 0, the largest",
    )
    max_megapixels: float = Field(
        MAX_MEGAPIXELS, gt=0, description="photographs with more megapixels are refused"
    )
    min_face: float = Field(
        20, ge=0, description="faces whose shorter side has fewer pixels are ignored"
    )
    min_score: float = Field(
        0.95,
        ge=0,
        le=1,
        description="faces of which the detector is less sure than this are ignored",
    )
