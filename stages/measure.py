"""How close the renders are to the aligned photograph, and what an edit changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from dhr_batch.stages import registry
from dhr_batch.stages.base import Context, Edit, Metric, Record, Stage, StageOptions, some
from dhr_batch.stages.face_scores import scores
from dhr_batch.stages.metrics import (
    Part,
    change,
    cosine,
    parts_of,
    perceptual_distance,
    pixel_metrics,
    shrink,
    shrink_mask,
)
from dhr_batch.stages.tensors import images_to_tensor, masks_to_tensor

if TYPE_CHECKING:
    from dhr_batch.stages.networks.dlib_face import Identity, Landmarks68
    from dhr_batch.stages.networks.perceptual import Perceptual

LANDMARK_MODEL = "dlib-landmarks68"
IDENTITY_MODEL = "dlib-face-resnet"


def edit_stage(edit: Edit) -> str:
    """What the metrics table calls an edit, e.g. ``edit:smile:-1.5``."""
    return f"edit:{edit.name}:{edit.strength:g}"


@dataclass(frozen=True, slots=True)
class Face:
    """What is measured on the face of one picture. descriptor: [128]."""

    scores: dict[str, float]
    descriptor: np.ndarray | None


class Standard(Stage):
    """`standard`: pixel, perceptual and identity metrics, landmark scores and edit effects.

    Rows are for the stages ``inverted``, ``refined`` and ``edit:<name>:<strength>``, each against
    the aligned source. Pixel and perceptual metrics exist for the whole picture and, suffixed
    ``_in`` and ``_out``, for the in-domain and out-of-domain part. ``change_in`` and
    ``change_out`` compare an edit with the refined picture. ``score_<name>`` rows (`face_scores`)
    exist for the stage ``source`` too, and `Edit.effect` holds those of the edited picture.

    Identity: Euclidean distance (dlib's threshold for one person: 0.6) and cosine of dlib's face
    descriptors. All pictures of a record use the face box of the source: they are aligned alike,
    and a box of its own would move the landmarks. A render in which no face is detected although
    the source has one gets no identity and score rows, and the record a note.
    """

    stage = "measure"
    needs = frozenset({"image", "inverted", "refined", "mask"})
    gives = frozenset({"metrics"})

    class Options(StageOptions):
        """perceptual: distances to compute; each needs its own weights, none is ever replaced.

        identity, landmarks: the networks, or `none`. size: pixel and perceptual metrics compare
        larger pictures at this many px, as the published tables do.
        """

        name: str = "standard"
        perceptual: tuple[str, ...] = ("st_lpips_alex",)
        identity: Literal["dlib", "none"] = "dlib"
        landmarks: Literal["dlib68", "none"] = "dlib68"
        size: int = Field(default=256, ge=32)

        @model_validator(mode="after")
        def _landmarks_for_identity(self) -> Standard.Options:
            if self.identity != "none" and self.landmarks == "none":
                raise ValueError("identity needs landmarks: set landmarks=dlib68 or identity=none")
            return self

    def setup(self, context: Context) -> None:
        """Load the networks. The model registry's error names a model that is missing."""
        super().setup(context)
        options = self.options
        self.perceptual: list[Perceptual] = [
            context.network("perceptual", name) for name in options.perceptual
        ]
        self.landmarks: Landmarks68 | None = None
        self.identity: Identity | None = None
        if options.landmarks != "none":
            self.landmarks = context.network("landmarks", options.landmarks)
        if options.identity != "none":
            self.identity = context.network("identity", options.identity)
        self.maker = f"generator={_honest(registry.label(context.generator))}"

    def process(self, records: Sequence[Record]) -> list[Record]:
        return [self._measure(record) for record in records]

    def _measure(self, record: Record) -> Record:
        source = some(record.image)
        renders = {"inverted": some(record.inverted), "refined": some(record.refined)}
        renders |= {edit_stage(edit): edit.image for edit in record.edits}
        rows = self._image_rows(source, renders, some(record.mask))

        faces: dict[str, Face] = {}
        missing: list[str] = []
        if self.landmarks is not None:
            faces, missing = self._faces(self.landmarks, source, renders)
        rows += self._face_rows(faces)
        notes = [
            f"measure: no face detected in {stage}: no identity, no scores" for stage in missing
        ]
        edits = tuple(
            replace(e, effect=faces[edit_stage(e)].scores) if edit_stage(e) in faces else e
            for e in record.edits
        )
        return replace(
            record,
            metrics=(*record.metrics, *rows),
            edits=edits,
            notes=(*record.notes, *notes),
        )

    def _image_rows(
        self, source: np.ndarray, renders: Mapping[str, np.ndarray], mask: np.ndarray
    ) -> list[Metric]:
        size = self.options.size
        maker = self.maker + (f"; at {size} px" if source.shape[0] > size else "")
        source, parts = shrink(source, size), parts_of(shrink_mask(mask, size))
        small = {stage: shrink(image, size) for stage, image in renders.items()}
        rows = []
        for stage, image in small.items():
            values = pixel_metrics(source, image, parts)
            if stage.startswith("edit:"):
                values |= change(small["refined"], image, parts)
            rows += _rows(stage, values, maker)
        for net in self.perceptual:
            for stage, values in self._perceptual(net, source, small, parts).items():
                rows += _rows(stage, values, f"{_honest(net.name)}; {maker}")
        return rows

    @torch.inference_mode()
    def _perceptual(
        self,
        net: Perceptual,
        source: np.ndarray,
        renders: Mapping[str, np.ndarray],
        parts: Mapping[str, Part],
    ) -> dict[str, dict[str, float]]:
        """Stage -> metric -> value. One picture at a time: the memory of one, and exact."""
        device = self.context.device
        target = net.features(images_to_tensor([source], device))
        weights = {
            suffix: None if part is None else masks_to_tensor([part], device)
            for suffix, part in parts.items()
        }
        values = {}
        for stage, image in renders.items():
            maps = net.maps(images_to_tensor([image], device), target)
            values[stage] = {
                f"{net.name}{suffix}": float(perceptual_distance(maps, weight))
                for suffix, weight in weights.items()
            }
        return values

    def _faces(
        self, landmarks: Landmarks68, source: np.ndarray, renders: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Face], list[str]]:
        """Stage -> face, and the stages whose picture shows none."""
        box, found_by = landmarks.locate(source)
        faces: dict[str, Face] = {}
        missing: list[str] = []
        for stage, image in {"source": source, **renders}.items():
            # Where the detector misses the source (profiles, occlusion), it says nothing about
            # the renders either, and alignment alone places the face.
            seen = found_by == "ffhq" or stage == "source" or landmarks.locate(image)[1] == "hog"
            points = landmarks.find(image, box) if seen else None
            if points is None:
                missing.append(stage)
                continue
            descriptor = self.identity.describe(image, points) if self.identity else None
            faces[stage] = Face(scores(points), descriptor)
        return faces, missing

    def _face_rows(self, faces: Mapping[str, Face]) -> list[Metric]:
        rows = []
        for stage, face in faces.items():
            maker = "" if stage == "source" else f"; {self.maker}"
            named = {f"score_{name}": value for name, value in face.scores.items()}
            rows += _rows(stage, named, LANDMARK_MODEL + maker)
            known = faces["source"].descriptor if "source" in faces else None
            if stage != "source" and known is not None and face.descriptor is not None:
                identity = {
                    "identity_dlib_distance": float(np.linalg.norm(known - face.descriptor)),
                    "identity_dlib_cosine": cosine(known, face.descriptor),
                }
                rows += _rows(stage, identity, IDENTITY_MODEL + maker)
        return rows


def _honest(name: str) -> str:
    return f"{name} (random weights)" if "tiny" in name else name


def _rows(stage: str, values: Mapping[str, float], model: str) -> list[Metric]:
    return [Metric(stage, name, value, model) for name, value in values.items()]
