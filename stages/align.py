"""Face alignment as in FFHQ (Karras et al., 2019): a rotated square around eyes and mouth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from dhr_batch.stages.base import Stage
from dhr_batch.stages.context import Context
from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.ffhq import (
    crop,
    full_quad,
    outside_share,
    quad_from_landmarks,
    quad_from_mtcnn,
    quad_from_points,
)
from dhr_batch.stages.networks.faces.detect import Face
from dhr_batch.stages.options.align import FFHQAlignOptions
from dhr_batch.stages.record import Record

__all__ = [
    "FFHQAlign", "crop", "quad_from_landmarks", "quad_from_mtcnn",
    "quad_from_points",
]  # fmt: skip


# Largest share of a crop that may lie outside the photograph, where it can only be filled.
_MOST_OUTSIDE = 0.7


@dataclass(frozen=True)
class _Photo:
    record: Record
    pixels: np.ndarray
    notes: tuple[str, ...]
    found: Sequence[Face] | None = None


@dataclass(frozen=True)
class _Choice:
    face: Face
    index: int
    notes: tuple[str, ...]


class FFHQAlign(Stage):
    """`ffhq`: decode each file, find the face and cut the FFHQ crop at the generator's resolution.

    With `face: all`, a record of a photograph becomes the face `record.face_index` of it, and its
    field `faces` tells how many there are; `faces.further` makes the records of the others.

    Images of datasets that are declared aligned are only resized; they must be square.
    """

    Options = FFHQAlignOptions

    needs: ClassVar[frozenset[str]] = frozenset({"data"})
    gives: ClassVar[frozenset[str]] = frozenset({"image", "quad", "source_size"})
    family: ClassVar[str] = "align"

    def models(self, aligned: bool) -> set[str]:
        return set() if aligned else {"mtcnn"} | super().models(aligned)

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.size = int(context.network("generator", context.generator).resolution)
        if not context.aligned:
            self.detector = context.network("detector", "mtcnn")
            if self.options.landmarks == "dlib68":
                self.landmarks68 = context.network("landmarks", "dlib68")

    def process(self, records: Sequence[Record]) -> list[Record]:
        """Align records.

        Images that fail are returned with a failure instead of raising, so that the work for the
        rest of the batch is not repeated.
        """
        opened = [self._attempt(record, self._open, record) for record in records]
        self._last = None
        photos = [o for o in opened if isinstance(o, _Photo)]
        if self.context.aligned:
            done = iter([self._attempt(p.record, self._resize, p) for p in photos])
        else:
            done = iter(self._align(photos))
        return [next(done) if isinstance(o, _Photo) else o for o in opened]

    def _attempt(self, record: Record, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except ImageError as error:
            message = f"{record.image_id}: {error}"
            return record.failed(self.family, error.error_class, message)

    # The photograph of which further faces may be asked for next.
    _last: _Photo | None = None

    def _open(self, record: Record) -> _Photo:
        if record.data is None:
            raise ValueError(f"{record.image_id}: the record has no content of a file")
        if self._last is not None and self._last.record.data is record.data:
            return replace(self._last, record=record)
        pixels, notes = decode(record.data, self.options.max_megapixels)
        return _Photo(record, pixels, notes)

    def _resize(self, photo: _Photo) -> Record:
        height, width = photo.pixels.shape[:2]
        if height != width:
            raise ImageError(
                "not_square",
                f"the image has {width} x {height} pixels, but its dataset is declared aligned and "
                "aligned images are square; set aligned: false to search for the face",
            )
        image = Image.fromarray(photo.pixels)
        if width != self.size:
            image = image.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return self._done(photo, np.array(image), full_quad(width, height), 0, photo.notes)

    def _align(self, photos: Sequence[_Photo]) -> list[Record]:
        new = [photo for photo in photos if photo.found is None]
        found = iter(self.detector.detect([photo.pixels for photo in new]))
        photos = [replace(p, found=next(found)) if p.found is None else p for p in photos]
        if self.options.face == "all":
            photos = [replace(p, record=self._counted(p)) for p in photos]
            if photos and not photos[-1].record.ends_photograph:
                self._last = photos[-1]
        chosen = [self._attempt(p.record, self._choose, p) for p in photos]
        taken = [i for i, c in enumerate(chosen) if isinstance(c, _Choice)]
        faces = [chosen[i].face for i in taken]
        if self.options.landmarks == "mtcnn5":
            faces = self.detector.refine([photos[i].pixels for i in taken], faces)
        for i, face in zip(taken, faces, strict=True):
            photo, choice = photos[i], replace(chosen[i], face=face)
            chosen[i] = self._attempt(photo.record, self._cut, photo, choice)
        return chosen

    def _counted(self, photo: _Photo) -> Record:
        return replace(photo.record, faces=max(1, len(self._usable(self._sure(photo)))))

    def _sure(self, photo: _Photo) -> list[Face]:
        return [f for f in photo.found or () if f.score >= self.options.min_score]

    def _usable(self, sure: Sequence[Face]) -> list[Face]:
        return [f for f in sure if f.side >= self.options.min_face]

    def _choose(self, photo: _Photo) -> _Choice:
        sure = self._sure(photo)
        if not sure:
            best = max((f.score for f in photo.found or ()), default=None)
            hint = "" if best is None else f" (best score {best:.2f}; lower align.min_score)"
            raise ImageError(
                "no_face",
                f"no face was found{hint}; if it lies on its side or upside down, rotate it",
            )
        usable = self._usable(sure)
        if not usable:
            raise ImageError(
                "face_too_small",
                f"the largest face has {sure[0].side:.0f} px, but align.min_face is "
                f"{self.options.min_face:g}",
            )
        if self.options.face == "only" and len(usable) > 1:
            raise ImageError(
                "several_faces",
                f"{len(usable)} faces were found; set align.face=largest to take the largest",
            )
        index, taken = 0, f"{self.options.face} of {len(usable)} faces taken"
        if self.options.face == "central":
            middle = np.array(photo.pixels.shape[1::-1]) / 2
            distances = [np.hypot(*((f.box[:2] + f.box[2:]) / 2 - middle)) for f in usable]
            index = int(np.argmin(distances))
        elif self.options.face not in ("largest", "only"):
            index = photo.record.face_index if self.options.face == "all" else self.options.face
            taken = f"face {index} of {len(usable)}, where 0 is the largest"
            if index >= len(usable):
                found = f"faces 0 (the largest) to {len(usable) - 1} were found"
                if len(usable) == 1:
                    found = "only one face was found, which is face 0"
                raise ImageError("no_such_face", f"it has no face {index}: {found}")
        return _Choice(usable[index], index, (taken,) if len(usable) > 1 else ())

    def _cut(self, photo: _Photo, choice: _Choice) -> Record:
        height, width = photo.pixels.shape[:2]
        quad = self._quad(photo.pixels, choice.face)
        outside = outside_share(quad, width, height)
        if outside > _MOST_OUTSIDE:
            raise ImageError(
                "face_cut_off",
                f"{outside:.0%} of the crop around the face lies outside the photograph",
            )
        notes = (*photo.notes, *choice.notes)
        if outside > 0:
            notes = (*notes, f"{outside:.1%} of the crop lies outside the photograph and is filled")
        image = crop(photo.pixels, quad, self.size)
        return self._done(photo, image, quad, choice.index, notes)

    def _quad(self, pixels: np.ndarray, face: Face) -> np.ndarray:
        if self.options.landmarks == "mtcnn5":
            return quad_from_mtcnn(face.points)
        points = self.landmarks68.find_near(pixels, face.box)
        if points is None:
            raise ImageError("no_landmarks", "the 68 landmarks were not found on the face")
        return quad_from_landmarks(points)

    def _done(
        self,
        photo: _Photo,
        image: np.ndarray,
        quad: np.ndarray,
        face_index: int,
        notes: tuple[str, ...],
    ) -> Record:
        height, width = photo.pixels.shape[:2]
        return replace(
            photo.record,
            data=None,
            image=image,
            quad=quad,
            source_size=(width, height),
            face_index=face_index,
            notes=(*photo.record.notes, *notes),
        )
