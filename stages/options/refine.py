"""Settings of the stage `refine`, which changes the generator to show what the code cannot."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dhr_batch.stages.base import StageOptions
from dhr_batch.stages.options.fields import Model, Parser, Perceptual, PerceptualSize, Rates


class NoRefinementOptions(StageOptions):
    name: str = "none"


class LossOptions(StageOptions):
    """Settings of `MaskedLoss`, which every refiner with a masked loss shares."""

    perceptual: Perceptual = "st_lpips_alex"
    perceptual_size: PerceptualSize = 256
    perceptual_weight: float = Field(
        1.3, ge=0, description="weight in the loss of the perceptual distance"
    )
    pixel_weight: float = Field(
        10.0, ge=0, description="weight in the loss of three times the mean squared error of pixels"
    )


class RateOptions(LossOptions):
    """Settings of refiners whose rates are relative to what they change."""

    earlier: ClassVar = {"rates": "absolute"}

    rates: Rates = Field(
        "relative",
        description="`relative`: learning rates are shares of the root mean square of what they "
        "change, so that they suit every generator; `absolute`: they are used as given",
    )


class WeightOptions(RateOptions):
    """Settings of weight modulation."""

    weight_rate: float = Field(0.02, gt=0, description="largest step of a weight of the generator")
    smallest_layer: float = Field(
        16,
        gt=0,
        description="layers of the generator smaller than this keep their weights; in pixels of a "
        "generator whose feature layer has 64 px, in proportion for others",
    )


class HybridRefinementOptions(WeightOptions):
    name: str = "dhr"
    steps: int = Field(
        38, ge=0, description="optimisation steps per image; more are slower and come closer"
    )
    weight_share: float = Field(
        0.8,
        ge=0,
        le=1,
        description="share of the steps, at the start, that change weights as well as the feature",
    )
    feature_rate: float = Field(
        0.1, gt=0, description="largest step of a value of the replaced feature layer"
    )


class PublishedRefinementOptions(LossOptions):
    name: str = "dhr-published"
    steps: int = Field(
        100, ge=0, description="optimisation steps per image, all of which change the feature"
    )
    weight_share: float = Field(
        0.5, ge=0, le=1, description="share of the steps, at the start, that change weights as well"
    )
    weight_rate: float = Field(
        1.5e-3, gt=0, description="learning rate of Adam for weights of the generator"
    )
    feature_rate: float = Field(
        9e-2, gt=0, description="learning rate of Adam for the replaced feature layer"
    )
    perceptual: Perceptual = "lpips_alex"
    perceptual_size: PerceptualSize = 1024
    perceptual_weight: float = Field(
        1.0, ge=0, description="weight in the loss of the perceptual distances"
    )
    pixel_weight: float = Field(
        1.0, ge=0, description="weight in the loss of three times the mean squared error of pixels"
    )
    layer_masks: Literal["nearest", "area"] = Field(
        "nearest",
        description="how the mask is reduced to the layers of the perceptual network: the nearest "
        "cell of the soft mask, or the mean of the hard mask over the area of a cell",
    )


class WeightModulationOptions(WeightOptions):
    name: str = "weights"
    steps: int = Field(
        30, ge=0, description="optimisation steps per image; more are slower and come closer"
    )


class FeatureModulationOptions(RateOptions):
    name: str = "feature"
    steps: int = Field(
        38, ge=0, description="optimisation steps per image; more are slower and come closer"
    )
    feature_rate: float = Field(
        0.1, gt=0, description="largest step of a value of the replaced feature layer"
    )


class PivotalTuningOptions(StageOptions):
    name: str = "pti"
    steps: int = Field(350, ge=0, description="largest number of optimisation steps per image")
    rate: float = Field(
        3e-4, gt=0, description="learning rate of Adam for weights of the generator"
    )
    rates: Rates = Field(
        "absolute",
        description="`absolute`: the learning rate is used as given, as published for StyleGAN2; "
        "`relative`: it is a share of the root mean square of what it changes",
    )
    stop: float = Field(
        0.06,
        ge=0,
        description="perceptual distance at which an image is finished; 0.06 is published, for "
        "lpips_alex",
    )
    perceptual: Perceptual = "st_lpips_alex"
    perceptual_size: PerceptualSize = 1024
    perceptual_weight: float = Field(
        1.0, ge=0, description="weight in the loss of the perceptual distance"
    )
    pixel_weight: float = Field(
        1.0, ge=0, description="weight in the loss of the mean squared error of pixels"
    )


class SpatiallyAdaptiveOptions(StageOptions):
    name: str = "sam"
    variant: Literal["official", "ganinverter"] = Field(
        "official",
        description="form of the loss and of the levels: that of the authors' code, or that of the "
        "toolbox GANInverter",
    )
    invertibility: Literal["measured", "predictor"] = Field(
        "measured",
        description="what decides how finely a segment is refined: the measured error of its "
        "embedding, or the prediction of the model sam-invertibility",
    )
    threshold: float = Field(
        0.225,
        gt=0,
        description="with invertibility=predictor: largest predicted error of a segment in a level",
    )
    measured_thresholds: tuple[float, float, float, float] = Field(
        (0.16, 0.18, 0.2, 0.23),
        description="with invertibility=measured: largest error of a segment that stays in the "
        "code (W+) or is refined in the features F4, F6 and F8; worse ones are refined in F10. In "
        "units of `perceptual`; the defaults suit st_lpips_alex",
    )
    steps: int = Field(1001, ge=0, description="optimisation steps per image")
    rate: float = Field(0.05, gt=0, description="largest learning rate of the optimiser Adam")
    parser: Parser = "landmarks"
    perceptual: Perceptual = "st_lpips_alex"
    perceptual_weight: float = Field(
        5.0,
        ge=0,
        description="weight in the loss of the perceptual distance; published: 1 with lpips_vgg",
    )
    pixel_weight: float = Field(
        1.0, ge=0, description="weight in the loss of the mean squared error of pixels"
    )
    feature_weight: float = Field(
        5.0, ge=0, description="weight in the loss of the mean square of the changes of features"
    )
    row_weight: float = Field(
        1e-3,
        ge=0,
        description="weight in the loss of the distances of the rows of a code from its first row",
    )
    prior_weight: float = Field(
        1e-8,
        ge=0,
        description="weight in the loss of the distance of a code from typical ones of the "
        "generator",
    )


class ResidualConditionsOptions(StageOptions):
    name: str = "hfgi"
    model: Model = "hfgi-ffhq"


class HyperStyleOptions(StageOptions):
    name: str = "hyperstyle"
    model: Model = "hyperstyle-ffhq"
    passes: int = Field(
        5, ge=1, le=255, description="passes of the network, each of which corrects the last"
    )
