"""Settings of the stage `segment`, which finds what of a photograph the generator can represent."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dhr_batch.stages.base import StageOptions
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX
from dhr_batch.stages.options.fields import Parser, Perceptual, Rates

FACE_CLASS = INDEX["face"]
PART_CLASSES = tuple(range(INDEX["right_ear"], INDEX["upper_lip"] + 1))


class Thresholds(BaseModel):
    """Largest error d_k of an in-domain superpixel, by its class.

    Thresholds are valid for one perceptual network, resolution and inversion;
    ``python -m dhr_batch.fitting.thresholds`` calibrates them. The defaults are the published
    values, for VGG16-LPIPS at 1024 px.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    face: float = Field(default=0.7, description="threshold of skin")
    parts: float = Field(default=0.8, description="threshold of ears, brows, eyes, nose and mouth")
    other: float = Field(
        default=0.6,
        description="threshold of hair, neck and glasses, and of everything without a face",
    )
    relative: float | None = Field(
        default=None,
        gt=0,
        description="errors above this multiple of the median over the face are out-of-domain "
        "too; null: no such limit",
    )
    mouth: float = Field(
        default=1.0,
        ge=1,
        description="factor of the thresholds at the mouth, which edits must be able to move",
    )

    def of_class(self) -> np.ndarray:
        """Return the threshold of each class, float64 [19]."""
        table = np.full(len(CLASSES), self.other)
        table[list(PART_CLASSES)] = self.parts
        table[FACE_CLASS] = self.face
        return table

    def of_superpixels(
        self, errors: np.ndarray, classes: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Return the threshold of each superpixel, float64 [K + 1].

        With `relative`, all thresholds of a face that is inverted well are multiplied by one factor
        below 1. Whatever differs far more than the rest of the face is then foreign, even if the
        difference is small. The thresholds of a face that is inverted badly do not change.

        Args:
            errors: Errors d_k, [K + 1].
            classes: Classes c_k, int [K + 1].
            sizes: Sizes of the superpixels in pixels, int [K + 1].
        """
        table = self.of_class()
        face = np.isin(classes, [FACE_CLASS, *PART_CLASSES]) & (sizes > 0) & np.isfinite(errors)
        if self.relative is not None and face.any():
            median = np.median(np.repeat(errors[face], sizes[face]))
            table = table * min(1.0, self.relative * median / self.face)
        return table[classes]


class DomainSpecificOptions(StageOptions):
    earlier: ClassVar = {"rates": "absolute"}

    name: str = "dhr"
    parser: Parser = "landmarks+person"
    perceptual: Perceptual = "st_lpips_alex"
    segments: int = Field(
        200,
        ge=1,
        description="approximate number of superpixels, which are in-domain or not as a whole",
    )
    compactness: float = Field(
        30.0,
        gt=0,
        description="how round superpixels are; smaller values let them follow colours instead",
    )
    thresholds: Thresholds = Field(
        Thresholds(),
        description="largest error of a superpixel that is in-domain, by what it shows",
    )
    source: Literal["coarse", "embedding", "mean_row", "projection"] = Field(
        "embedding",
        description="render that is compared with the photograph to measure errors: of the "
        "embedding, of one vector for all layers that is the mean of the embedding's (mean_row) or "
        "is optimised (coarse), or of one with noise maps, as published, on StyleGAN2 (projection)",
    )
    coarse_steps: int = Field(
        40, ge=1, description="optimisation steps with source=coarse or source=projection"
    )
    coarse_rate: float = Field(
        0.226,
        gt=0,
        description="largest learning rate of Adam with source=coarse or source=projection",
    )
    rates: Rates = Field(
        "relative",
        description="`relative`: `coarse_rate` is a multiple of the spread of the generator's "
        "codes; `absolute`: it is used as given, as published",
    )
    error_layers: int | None = Field(
        None,
        ge=1,
        description="number of layers of the perceptual network whose errors are used, the finest "
        "first, as coarse ones see the surroundings of a superpixel too; null: all",
    )
    error_size: int = Field(
        256, ge=32, description="errors are measured on pictures of at most this size, in pixels"
    )
    size: int | None = Field(
        None,
        ge=32,
        description="larger pictures are segmented at this size in pixels, and the result is "
        "enlarged; null: at full size, as published",
    )
    bgr: bool = Field(
        False, description="find superpixels in pictures with red and blue swapped, as published"
    )
    error: bool = Field(
        True, description="use errors; false: the mask comes from the parser of faces alone"
    )
