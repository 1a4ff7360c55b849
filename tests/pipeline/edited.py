"""Stages that edit photographs without networks: two faces in each, and edits that change a lot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel

import dhr_batch
from dhr_batch.stages.decode import decode
from dhr_batch.stages.edit import syntax
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.ffhq import crop
from dhr_batch.stages.record import EditedImage, Metric, Record, required
from dhr_batch.tests import no_op

if TYPE_CHECKING:
    from dhr_batch.pipeline.editing.edited import Edited

SIZE = 32
EDITS = ("smile=2", "smile=1+yaw=-0.5")
# Corners of the faces, the largest first, in photographs of at least 140 x 120 pixels.
QUADS = tuple(
    np.array([(x, y), (x, y + side), (x + side, y + side), (x + side, y)], np.float64)
    for x, y, side in ((70, 40, 60), (10, 30, 40))
)


class Align(no_op.Align):
    """Finds the faces at `QUADS`, and none in a black photograph."""

    class Options(no_op.NoOpOptions):
        face: Literal["largest", "central", "only", "all"] | int = "largest"

    def process(self, records: Sequence[Record]) -> list[Record]:
        return [self._face(record) for record in records]

    def _face(self, record: Record) -> Record:
        pixels, _ = decode(required(record.data))
        if not pixels.any():
            raise ImageError("no_face", f"{record.image_id}: no face was found")
        chosen = self.options.face
        index = chosen if isinstance(chosen, int) else record.face_index
        if index >= len(QUADS):
            raise ImageError("no_such_face", f"{record.image_id}: it has no face {index}")
        image = crop(pixels, QUADS[index], SIZE)
        if not image.any():
            raise ImageError("no_face", f"{record.image_id}: the face is black")
        return replace(
            record,
            data=None,
            image=image,
            quad=QUADS[index],
            source_size=pixels.shape[1::-1],
            face_index=index,
            faces=len(QUADS) if chosen == "all" else 1,
        )


class Refine(no_op.Refine):
    """Reproduces the photograph exactly, and tells of two steps."""

    def process(self, records: Sequence[Record]) -> list[Record]:
        for _ in self.counted(range(2)):
            pass
        return [replace(r, refined=r.image) for r in records]


class OneEdit(BaseModel):
    """The settings of an edit as `syntax.settings` has them."""

    direction: str = ""
    unit: str = ""
    strengths: tuple[float, ...] = (1.0,)
    combined: tuple[OneEdit, ...] = ()

    @property
    def title(self) -> str:
        return self.direction + ("_degrees" if self.unit else "")

    def check(self) -> None:
        pass

    def load(self, models: object) -> SimpleNamespace:
        return SimpleNamespace(sha256="0" * 64)


class Edit(no_op.Edit):
    """Makes a face brighter or darker, by the sum of the strengths."""

    class Options(no_op.NoOpOptions):
        edits: tuple[OneEdit, ...] = (OneEdit(direction="smile", strengths=(-1, 1)),)

    def process(self, records: Sequence[Record]) -> list[Record]:
        return [replace(r, edits=tuple(self._edits(required(r.refined)))) for r in records]

    def _edits(self, refined: np.ndarray) -> list[EditedImage]:
        made = []
        for edit in self.options.edits:
            if edit.combined:
                terms = [syntax.Term(part.title, part.strengths[0]) for part in edit.combined]
                made.append((syntax.joined(terms), 1.0, sum(term.strength for term in terms)))
            else:
                made += [(edit.title, strength, strength) for strength in edit.strengths]
        latent = np.zeros((8, 512), np.float32)
        return [
            EditedImage(name, strength, "0" * 64, latent, _brighter(refined, size))
            for name, strength, size in made
        ]


def _brighter(picture: np.ndarray, size: float) -> np.ndarray:
    return np.clip(picture + 60 * size, 0, 255).astype(np.uint8)


class Measure(no_op.Measure):
    """Measures one number of the refined picture, and one that is not known."""

    def process(self, records: Sequence[Record]) -> list[Record]:
        numbers = (
            Metric("refined", "psnr", 30.0, "m"),
            Metric("edit:smile:2", "psnr", np.nan, "m"),
        )
        return [replace(r, metrics=numbers, notes=("darker",)) for r in records]


HERE = "dhr_batch.tests.pipeline.edited"
NAMES = no_op.NAMES | {
    cls.family: f"{HERE}:{cls.__name__}" for cls in (Align, Refine, Edit, Measure)
}


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(50, 200, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def edit(image: object, edits: object = EDITS, **options: Any) -> Edited:
    return dhr_batch.edit(image, edits, settings=NAMES, device="cpu", **options)


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)
