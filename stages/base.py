"""The data that flows through the pipeline (`Record`) and the interface of its steps (`Stage`)."""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from dhr_batch.stages import failures, registry
from dhr_batch.stages.device import Precision
from dhr_batch.stages.failures import ImageError


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


_T = TypeVar("_T")
# Told how far a stage is with a batch: its family, the number of steps done, and of all steps.
Told = Callable[[str, int, int], None]


def required(value: _T | None) -> _T:
    """Return the value of an optional field that an earlier stage must have filled.

    The plan compares `Stage.needs` with `Stage.gives`, so the error means a fault of a stage.

    Raises:
        ValueError: The value is None.
    """
    if value is None:
        raise ValueError("an earlier stage did not fill a field that this stage needs")
    return value


class StageOptions(BaseModel):
    """Settings of a stage. `name` selects the member of its family; unknown keys are refused.

    Attributes:
        earlier: What a run did that was made before an option existed, by the name of the option,
            where that differs from the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    earlier: ClassVar[Mapping[str, Any]] = {}

    name: str


# Where a context keeps the refiner among its networks.
_REFINER = ("refine", "")


@dataclass
class Context:
    """The resources that stages share: device, seed, model files and loaded networks.

    Attributes:
        device: Device of torch, such as `cpu` or `cuda`.
        generator: Name of the generator, or a file written by `dhr-batch models convert`.
        models: Function from the name of a model to the path of its verified file or folder.
        seed: Seed of all random numbers.
        aligned: Whether the dataset is already FFHQ-aligned. Then no face is searched for.
        refine: Settings of the stage `refine` of the run, with `name`.
        edit: Settings of the stage `edit` of the run that pictures are rendered again with.
        precision: Precision of the run (see `device`). The flags of the process are not set by it.
        progress: Called by stages after each step of a batch, with the family of the stage, the
            number of steps that are done and the number of all steps. Stages without steps, such
            as a single pass of a network, do not call it. It must return at once: on a GPU, a wait
            would hold up the device.
        stored: Returns a record with the refinement as the tables of the run will store it, which
            pictures are rendered from. By default, it is exact.
    """

    device: str
    generator: str
    models: Callable[[str], Path]
    seed: int = 0
    aligned: bool = False
    refine: Mapping[str, Any] = field(default_factory=lambda: {"name": "none"})
    edit: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"
    progress: Told = lambda family, step, steps: None
    stored: Callable[[Record], Record] = lambda record: record
    _networks: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def network(self, family: str, name: str) -> Any:
        """Return the network `name` of `family`, loaded once and shared by all stages of a worker.

        Raises:
            UnknownName: The family has no such member.
        """
        key = (family, name)
        if key not in self._networks:
            self._networks[key] = registry.lookup(family, name)(self)
        return self._networks[key]

    def new_refiner(self) -> Any:
        """Return the refiner of the run without its networks.

        Stored settings that the refiner no longer has are left out, as they belong to the
        optimisation.

        Raises:
            UnknownName: There is no such refiner.
        """
        member = registry.lookup("refine", self.refine["name"])
        known = {k: v for k, v in self.refine.items() if k in member.Options.model_fields}
        return member(member.Options(**known))

    def refiner(self) -> Any:
        """Return the refiner of the run, ready to render pictures of its refinements.

        Raises:
            UnknownName: There is no such refiner.
        """
        if _REFINER not in self._networks:
            refiner = self.new_refiner()
            refiner.setup_render(self)
            self._networks[_REFINER] = refiner
        return self._networks[_REFINER]

    def use_refiner(self, refiner: Any) -> None:
        """Make `refiner` return this one, which the stage `refine` has already loaded."""
        self._networks[_REFINER] = refiner


class Stage(ABC):
    """A step of the pipeline, which maps N records to the same N records in the same order.

    A subclass implements `process`. `run` calls it and isolates failures, so that a bad image does
    not affect the others of its batch.

    Attributes:
        needs, gives: Fields of `Record` that the stage reads and fills.
        family: Name of the family, one of `registry.STAGES`.
        Options: Class of the settings.
    """

    needs: ClassVar[frozenset[str]]
    gives: ClassVar[frozenset[str]]
    family: ClassVar[str]
    Options: ClassVar[type[StageOptions]]

    def __init__(self, options: Any) -> None:
        self.options = options

    def setup(self, context: Context) -> None:
        """Load the networks of the stage. Called once per worker, before any record."""
        self.context = context

    def models(self, aligned: bool) -> set[str]:
        """Return the names of the models that `setup` loads, which are checked before a run starts.

        An option with the name of a network family names members of it, and these need the models
        in `registry.MODELS`. A stage that loads other models overrides this method.

        Args:
            aligned: As in `Context`.
        """
        found: set[str] = set()
        for family, chosen in self.options.model_dump().items():
            if family in registry.TABLE:
                for name in [chosen] if isinstance(chosen, str) else chosen:
                    found.update(registry.MODELS.get((family, name), ()))
        return found

    def counted(
        self, items: Sequence[_T], before: int = 0, total: int | None = None
    ) -> Iterator[_T]:
        """Yield the items of a loop, and tell `Context.progress` after each how many are done.

        Args:
            items: Optimisation steps, records, or anything else that takes about equal time.
            before: The number of steps of the stage before this loop.
            total: The number of steps of the stage; by default, this loop is all of them.
        """
        total = len(items) if total is None else total
        for done, item in enumerate(items, before + 1):
            yield item
            self.context.progress(self.family, done, total)

    @abstractmethod
    def process(self, records: Sequence[Record]) -> list[Record]:
        """Map records without failures to new records, one for one and in order.

        Raises:
            ImageError: With a single record, to quarantine the image.
        """

    def run(self, records: Sequence[Record]) -> list[Record]:
        """Process N records and return the same N. Failed records are returned unchanged.

        If a batch raises an exception, its images are processed one by one, and an image that
        raises on its own gets a failure. If memory is exhausted, the batch is halved and the same
        images are tried again; this worker does not try a size that failed once again.

        Raises:
            Poisoned: The process cannot be used any more.
            Exception: Any error that is not about one image (see `failures`).
        """
        alive = [r for r in records if r.failure is None]
        done = iter(self._run_in_batches(alive))
        return [r if r.failure is not None else next(done) for r in records]

    def save_memory(self) -> bool:
        """Use less memory for a single image from now on; return whether that is possible."""
        return False

    # Largest number of images at once that memory has not refused so far.
    _batch_limit = sys.maxsize

    def _run_in_batches(self, records: list[Record]) -> list[Record]:
        done: list[Record] = []
        while len(done) < len(records):
            part = records[len(done) :][: self._batch_limit]
            try:
                done += self._checked(part)
                continue
            except Exception as error:
                kind = failures.kind_of(error)
                if kind == "poisoned":
                    raise failures.Poisoned(f"{self.family}: {failures.explain(error)}") from error
                if kind in ("bug", "storage"):
                    raise
                if len(part) == 1 and not (kind == "capacity" and self.save_memory()):
                    done.append(self._failed(part[0], error, kind))
            # Only here the exception is deleted, and with it the tensors of its frames.
            if kind == "capacity":
                failures.free_memory()
                self._batch_limit = max(1, len(part) // 2)
            elif len(part) > 1:
                for record in part:
                    done += self._run_in_batches([record])
        return done

    def _checked(self, records: list[Record]) -> list[Record]:
        result = self.process(records)
        if [r.image_id for r in result] != [r.image_id for r in records]:
            raise AssertionError(f"{type(self).__name__} changed the number or order of records")
        return result

    def _failed(self, record: Record, error: Exception, kind: failures.Kind) -> Record:
        if isinstance(error, ImageError):
            return record.failed(self.family, error.error_class, str(error))
        name = "oom" if kind == "capacity" else type(error).__name__
        return record.failed(self.family, name, f"{record.image_id}: {failures.explain(error)}")
