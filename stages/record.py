"""One face on its way through the pipeline (`Record`), and what the stages fill it with."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """The reason why an image was quarantined.

    Attributes:
        stage: Family of the stage that failed, such as `align`.
        error_class: A short snake_case word, such as `no_face`.
        message: An explanation for the user.
        details: The traceback, for the log and the state of the run. It is not in the tables.
    """

    stage: str
    error_class: str
    message: str
    details: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class EditedImage:
    """One edit of one image.

    Attributes:
        name, strength: The edit and how far it goes, in units of its direction.
        direction_sha256: Checksum of the direction.
        latent: The edited code, float32 [L, 512].
        image: Its render, uint8 [R, R, 3].
        effect: Scores of the edited face by name.
        start: The strength that changes nothing, if strengths are targets. Otherwise this is 0.
        contours: Metrics by name that need the motion of the edit (`measure.contours`).
    """

    name: str
    strength: float
    direction_sha256: str
    latent: np.ndarray
    image: np.ndarray
    effect: dict[str, float] = field(default_factory=dict)
    start: float | None = None
    contours: dict[str, float] = field(default_factory=dict)


EDIT_STAGE = "edit:"
# Prefix of metrics against the ground truth of a synthetic picture.
TRUTH = "truth_"
# Prefix of `EditedImage.start` among the metrics of the refined picture.
START = "start_"
# Names of `EditedImage.contours`.
CONTOURS = ("background_psnr", "background_psnr_refined", "ghost")


def edit_stage(name: str, strength: float) -> str:
    """Return the name of an edit in the column `stage` of the metrics table.

    Example:
        >>> edit_stage("smile", -1.50)
        'edit:smile:-1.5'
    """
    return f"{EDIT_STAGE}{name}:{strength:g}"


def edit_of(stage: str) -> tuple[str, float] | None:
    """Return the name and strength of an edit from the column `stage`; None for other stages.

    Example:
        >>> edit_of("edit:smile:-1.5"), edit_of("refined")
        (('smile', -1.5), None)
    """
    name, _, strength = stage.removeprefix(EDIT_STAGE).rpartition(":")
    try:
        return (name, float(strength)) if stage.startswith(EDIT_STAGE) else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the metrics table.

    Attributes:
        stage: `inverted`, `refined`, `edit:<name>:<strength>` or, for scores only, `source`.
        metric: Name of the metric.
        value: Its value.
        model: The networks that it depends on.
    """

    stage: str
    metric: str
    value: float
    model: str


@dataclass(frozen=True, slots=True)
class Feature:
    """The features of one picture in a network, for distances between sets of pictures.

    Attributes:
        kind: `aligned`, `inverted`, `refined` or `edit:<name>:<strength>`.
        extractor: Name of the network.
        vector: float32 [D].
    """

    kind: str
    extractor: str
    vector: np.ndarray


@dataclass(frozen=True, slots=True)
class Truth:
    """The ground truth of a synthetic picture. A twin is the same picture without the occluder.

    Attributes:
        clean: The face without an occluder, uint8 [T, T, 3].
        face: The region of the face, parsed from `clean`, bool [T, T].
        occluder: The region of the occluder, bool [T, T]. For a twin, that of the other picture.
        occluded: Whether the picture shows the occluder; false for a twin.
        z, truncation: What the generator made the face from.
        latent: W code of the clean face, float32 [512], which is ``map(z, truncation)``.
    """

    clean: np.ndarray
    face: np.ndarray
    occluder: np.ndarray
    occluded: bool
    z: np.ndarray
    truncation: float
    latent: np.ndarray


@dataclass(frozen=True, slots=True)
class Record:
    """One face on its way through the pipeline. Arrays are read-only by convention.

    Attributes:
        image_id: Identifier of the image in the dataset.
        source: Where the file comes from.
        split: Split of the dataset, or empty.
        data: Content of the source file, until `align` has decoded it.
        source_bytes: Size of the source file in bytes.
        source_sha256: The sha256 of its content.
        truth: Ground truth of a synthetic picture.
        image: The aligned crop, uint8 [R, R, 3].
        quad: Corners of the crop in pixels of the upright source, float64 [4, 2], in the order
            top-left, bottom-left, bottom-right, top-right.
        source_size: Width and height of the upright source in pixels.
        face_index: Index of the face among those found, the largest first.
        faces: How many faces of the photograph become records (see `faces`). This one is followed
            by those with a larger `face_index`.
        latent: W+ code, float32 [L, 512].
        inverted, refined: Renders before and after refinement, uint8 [R, R, 3].
        labels: CelebAMask-HQ class of each pixel, uint8 [R, R].
        mask: True where in-domain, bool [R, R].
        delta: Refined minus published weights, name -> float32.
        feature: Replacement of the feature layer, float32 [C, h, w].
        state: Further results of the refiner by name, of any type and shape.
        edits, metrics, features: Results of the stages `edit` and `measure`.
        notes: Remarks for the user, such as which of several faces was taken.
        failure: Why the image was quarantined, if it was.
    """

    image_id: str
    source: str
    split: str = ""
    data: bytes | None = None
    source_bytes: int | None = None
    source_sha256: str | None = None
    truth: Truth | None = None
    image: np.ndarray | None = None
    quad: np.ndarray | None = None
    source_size: tuple[int, int] | None = None
    face_index: int = 0
    faces: int = 1
    latent: np.ndarray | None = None
    inverted: np.ndarray | None = None
    labels: np.ndarray | None = None
    mask: np.ndarray | None = None
    delta: dict[str, np.ndarray] | None = None
    feature: np.ndarray | None = None
    state: dict[str, np.ndarray] | None = None
    refined: np.ndarray | None = None
    edits: tuple[EditedImage, ...] = ()
    metrics: tuple[Metric, ...] = ()
    features: tuple[Feature, ...] = ()
    notes: tuple[str, ...] = ()
    failure: ImageFailure | None = None

    @property
    def ends_photograph(self) -> bool:
        """Whether no further face of the same photograph follows."""
        return self.face_index + 1 >= self.faces

    def failed(self, stage: str, error_class: str, message: str) -> Record:
        """Return a copy with a failure and without the content of the source file.

        While an exception is being handled, its traceback is kept as well.
        """
        details = traceback.format_exc() if sys.exc_info()[0] else ""
        return replace(self, failure=ImageFailure(stage, error_class, message, details), data=None)


def required(value: _T | None) -> _T:
    """Return the value of an optional field that an earlier stage must have filled.

    The plan compares `Stage.needs` with `Stage.gives`, so the error means a fault of a stage.

    Raises:
        ValueError: The value is None.
    """
    if value is None:
        raise ValueError("an earlier stage did not fill a field that this stage needs")
    return value
