"""Settings of the stage `embed`, which finds the code of each photograph in the generator."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dhr_batch.stages.base import StageOptions
from dhr_batch.stages.options.fields import Betas, Model, Perceptual, PerceptualSize, Rates


class _OptimiseOptions(StageOptions):
    earlier: ClassVar = {"rates": "absolute", "betas": (0.9, 0.999)}

    steps: int = Field(
        120, ge=0, description="optimisation steps per image; more are slower and come closer"
    )
    rates: Rates = Field(
        "relative",
        description="`relative`: learning rates and `pull` are multiples of the spread of the "
        "generator's codes, so that they suit every generator; `absolute`: they are used as given",
    )
    perceptual: Perceptual = "st_lpips_alex"
    perceptual_size: PerceptualSize = 128
    face_weight: float = Field(
        1.0,
        ge=0,
        description="weight in the loss of the perceptual distance of eyes, nose and mouth, which "
        "are compared at full size",
    )
    pixel_weight: float = Field(
        3.0, ge=0, description="weight in the loss of the mean squared error of pixels"
    )
    decay: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the steps, at the end, over which the learning rate falls to 0",
    )
    betas: Betas = (0.9, 0.999)


class OptimiseWOptions(_OptimiseOptions):
    name: str = "w"
    rate: float = Field(0.226, gt=0, description="largest learning rate of the optimiser Adam")
    prior: float = Field(
        0.0,
        ge=0,
        description="strength with which codes are kept near those of typical faces, as a weight "
        "in the loss; 0: not at all",
    )


class OptimiseWPlusOptions(_OptimiseOptions):
    earlier: ClassVar = {**_OptimiseOptions.earlier, "whitening": 0.0}

    name: str = "w+"
    steps: int = Field(
        26, ge=0, description="optimisation steps per image; more are slower and come closer"
    )
    w_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the steps, at the start, that move one vector for all layers (W) "
        "before each layer gets its own (W+)",
    )
    w_rate: float = Field(0.15, gt=0, description="largest learning rate of the steps in W")
    rate: float = Field(0.1, gt=0, description="largest learning rate of the steps in W+")
    pull: float = Field(
        0.0098,
        ge=0,
        description="weight in the loss of the distance between the vectors of the layers and "
        "their mean; larger values make codes that are easier to edit and less close",
    )
    whitening: float = Field(
        0.5,
        ge=0,
        le=1,
        description="how much longer steps are along axes on which the generator's codes vary "
        "more, as a power of their standard deviation; 0: equally long",
    )
    betas: Betas = (0.8, 0.95)


class EncodeE4EOptions(StageOptions):
    name: str = "e4e"
    model: Model = "e4e-ffhq"


class EncodePSPOptions(StageOptions):
    name: str = "psp"
    model: Model = "psp-ffhq"


class EncodeStyleTransformerOptions(StageOptions):
    name: str = "style-transformer"
    model: Model = "style-transformer-ffhq"


class ReStyleE4EOptions(StageOptions):
    name: str = "restyle-e4e"
    model: Model = "restyle-e4e-ffhq"
    steps: int = Field(
        5, ge=1, description="passes of the encoder, each of which corrects the code of the last"
    )


class ReStylePSPOptions(ReStyleE4EOptions):
    name: str = "restyle-psp"
    model: Model = "restyle-psp-ffhq"


class EncodeWOptions(StageOptions):
    name: str = "w-encoder"
    model: Model = "hyperstyle-w-encoder"
    mean_model: str = Field(
        "hyperstyle-ffhq",
        description="model whose mean code is added to the output of the encoder; name the encoder "
        "itself to use it without the file of HyperStyle",
    )
