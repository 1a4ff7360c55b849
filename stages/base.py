"""What flows through the pipeline (`Record`) and what a step of it is (`Stage`)."""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from dhr_batch.stages import failures, registry
from dhr_batch.stages.failures import ImageError


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why an image was quarantined: the stage, a short class and a message for the user.

    details: the traceback, for the log and the state of the run; not in the tables.
    """

    stage: str
    error_class: str
    message: str
    details: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class EditedImage:
    """One edit of one image. image: uint8 [R, R, 3]; latent: float32 [L, 512]."""

    name: str
    strength: float
    direction_sha256: str
    latent: np.ndarray
    image: np.ndarray
    effect: dict[str, float] = field(default_factory=dict)


EDIT_STAGE = "edit:"
# Metrics against the ground truth of a synthetic picture begin with this.
TRUTH = "truth_"


def edit_stage(name: str, strength: float) -> str:
    """What the metrics table calls an edit, e.g. ``edit:smile:-1.5``."""
    return f"{EDIT_STAGE}{name}:{strength:g}"


def edit_of(stage: str) -> tuple[str, float] | None:
    """Name and strength of a stage of the metrics table; None for one that is no edit."""
    name, _, strength = stage.removeprefix(EDIT_STAGE).rpartition(":")
    try:
        return (name, float(strength)) if stage.startswith(EDIT_STAGE) else None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Metric:
    """One number. stage: `inverted`, `refined`, `edit:<name>:<strength>` or `source` (scores only).

    model: what made it.
    """

    stage: str
    metric: str
    value: float
    model: str


@dataclass(frozen=True, slots=True)
class Feature:
    """What a network sees in one picture, for distances between sets of pictures.

    kind: `aligned`, `inverted`, `refined` or `edit:<name>:<strength>`. vector: float32 [D].
    """

    kind: str
    extractor: str
    vector: np.ndarray


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of a synthetic picture. Pictures and masks are T px.

    clean: the face without an occluder, uint8 [T, T, 3]. face: its region by its own parse, bool
    [T, T]. occluder: bool [T, T]; in the twin of an occluded picture, where that has it. occluded:
    false in such a twin. latent: W code of the clean face, float32 [512], the generator's
    `map(z, truncation)`.
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

    data: encoded bytes of the source file (until `align` has decoded them). truth: what is known
    of a synthetic picture.
    image: aligned source, uint8 [R, R, 3]. quad: [4, 2] corners of the crop in pixels of the
    upright source, order top-left, bottom-left, bottom-right, top-right.
    latent: W+ code, float32 [L, 512]. inverted, refined: renders, uint8 [R, R, 3].
    labels: CelebAMask-HQ class of each pixel, uint8 [R, R]. mask: in-domain, bool [R, R].
    delta: refined minus published weights, name -> float32. feature: replacement of the feature
    layer, float32 [C, h, w].
    """

    image_id: str
    source: str
    split: str = ""
    data: bytes | None = None
    truth: Truth | None = None
    image: np.ndarray | None = None
    quad: np.ndarray | None = None
    source_size: tuple[int, int] | None = None
    face_index: int = 0
    latent: np.ndarray | None = None
    inverted: np.ndarray | None = None
    labels: np.ndarray | None = None
    mask: np.ndarray | None = None
    delta: dict[str, np.ndarray] | None = None
    feature: np.ndarray | None = None
    refined: np.ndarray | None = None
    edits: tuple[EditedImage, ...] = ()
    metrics: tuple[Metric, ...] = ()
    features: tuple[Feature, ...] = ()
    notes: tuple[str, ...] = ()
    failure: ImageFailure | None = None

    def failed(self, stage: str, error_class: str, message: str) -> Record:
        """A copy that carries its failure and drops the source bytes.

        Called while an exception is handled, it keeps the traceback as well.
        """
        details = traceback.format_exc() if sys.exc_info()[0] else ""
        return replace(self, failure=ImageFailure(stage, error_class, message, details), data=None)


_T = TypeVar("_T")


def required(value: _T | None) -> _T:
    """A field that an earlier stage has filled (the plan checks `needs` against `gives`)."""
    if value is None:
        raise ValueError("a field this stage needs was not filled by an earlier stage")
    return value


class StageOptions(BaseModel):
    """Settings of one stage; `name` picks the member of its family. Unknown keys are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str


@dataclass
class Context:
    """What a stage may use: the device, the seed, and networks that stages share.

    models: name of a model -> path of its verified file or folder.
    aligned: the dataset is already FFHQ-aligned, so no face is searched for.
    """

    device: str
    generator: str
    models: Callable[[str], Path]
    seed: int = 0
    aligned: bool = False
    _networks: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def network(self, family: str, name: str) -> Any:
        """The network `name` of `family`, loaded once and shared by all stages of a worker.

        Raises UnknownName for a name the family does not have.
        """
        key = (family, name)
        if key not in self._networks:
            self._networks[key] = registry.lookup(family, name)(self)
        return self._networks[key]


class Stage(ABC):
    """A step: declares what it needs and gives, and maps N records to the same N in order.

    A subclass implements `process`; `run` isolates failures so that one bad image never harms
    its batch mates. Fields named in `needs` and `gives` are fields of `Record`.
    """

    needs: ClassVar[frozenset[str]]
    gives: ClassVar[frozenset[str]]
    family: ClassVar[str]
    Options: ClassVar[type[StageOptions]]

    def __init__(self, options: Any) -> None:
        self.options = options

    def setup(self, context: Context) -> None:
        """Load what the stage needs. Called once per worker, before any record."""
        self.context = context

    def models(self, aligned: bool) -> set[str]:
        """Names of the models that `setup` asks for, so that they are checked before any worker.

        An option called like a family of networks names its members. A member that loads others,
        or not all of these, overrides this. aligned: as in `Context`.
        """
        found: set[str] = set()
        for family, chosen in self.options.model_dump().items():
            if family in registry.TABLE:
                for name in [chosen] if isinstance(chosen, str) else chosen:
                    found.update(registry.MODELS.get((family, name), ()))
        return found

    @abstractmethod
    def process(self, records: Sequence[Record]) -> list[Record]:
        """Map records without failures to new records, one for one, in order.

        May raise ImageError when called with a single record; `run` then quarantines it.
        """

    def run(self, records: Sequence[Record]) -> list[Record]:
        """N records in, the same N out. Failed records pass through untouched.

        An exception for a batch is narrowed down image by image; the image that raises on its
        own gets a failure. Where memory does not suffice, the batch is halved and the same images
        are tried again; a size that failed once is not tried again by this worker.
        Raises Poisoned, and whatever is not about one image (see `failures`).
        """
        alive = [r for r in records if r.failure is None]
        done = iter(self._run_in_batches(alive))
        return [r if r.failure is not None else next(done) for r in records]

    # Images at once: what memory has not refused so far.
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
                if len(part) == 1:
                    done.append(self._failed(part[0], error, kind))
            # Only here the exception, and with it the tensors of its frames, is gone.
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
