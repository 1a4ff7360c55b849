"""Face alignment as in FFHQ (Karras et al., 2019): a rotated square from eyes and mouth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from dhr_batch.stages.base import Context, ImageError, Options, Record, Stage
from dhr_batch.stages.decode import decode
from dhr_batch.stages.ffhq import crop, outside_share, quad_from_landmarks, quad_from_mtcnn
from dhr_batch.stages.networks.detect import Face
from dhr_batch.stages.networks.dlib_face import hog_box, overlap


class AlignOptions(Options):
    """landmarks: `mtcnn5` (the detector's own five points) or `dlib68`.

    face: which of several faces is taken; `only` refuses such images. min_face: shorter side of
    the face box in pixels. min_score: detector score from 0 to 1.
    """

    name: str = "ffhq"
    landmarks: Literal["mtcnn5", "dlib68"] = "mtcnn5"
    face: Literal["largest", "central", "only"] = "largest"
    max_megapixels: float = Field(64, gt=0)
    min_face: float = Field(20, ge=0)
    min_score: float = Field(0.9, ge=0, le=1)


@dataclass(frozen=True)
class _Upright:
    """A decoded photograph on its way through the stage."""

    record: Record
    pixels: np.ndarray
    notes: tuple[str, ...]


class FFHQAlign(Stage):
    """Decodes each file, finds the face and cuts the FFHQ crop at the generator's resolution.

    Images of datasets declared aligned are only resized; they must be square.
    """

    needs: ClassVar = frozenset({"data"})
    gives: ClassVar = frozenset({"image", "quad", "source_size"})
    stage: ClassVar = "align"
    Options: ClassVar = AlignOptions

    def setup(self, context: Context) -> None:
        super().setup(context)
        self.size = int(context.network("generator", context.generator).resolution)
        if not context.aligned:
            self.detector = context.network("detector", "mtcnn")
            if self.options.landmarks == "dlib68":
                self.landmarks68 = context.network("landmarks", "dlib68")

    def process(self, records: Sequence[Record]) -> list[Record]:
        """Bad images come back as failures, so that one of them never repeats work for the rest."""
        opened = [self._open(record) for record in records]
        good = [o for o in opened if isinstance(o, _Upright)]
        if self.context.aligned:
            done = iter([self._guard(o, self._resize, ()) for o in good])
        else:
            found = self.detector.detect([o.pixels for o in good])
            done = iter(
                [self._guard(o, self._cut, faces) for o, faces in zip(good, found, strict=True)]
            )
        return [next(done) if isinstance(o, _Upright) else o for o in opened]

    def _open(self, record: Record) -> _Upright | Record:
        if record.data is None:
            raise ValueError(f"{record.image_id}: no file content to decode")
        try:
            pixels, notes = decode(record.data, self.options.max_megapixels)
        except ImageError as error:
            return self._fail(record, error)
        return _Upright(record, pixels, notes)

    def _guard(self, photo: _Upright, step, faces: Sequence[Face]) -> Record:  # type: ignore[no-untyped-def]
        try:
            return step(photo, faces)
        except ImageError as error:
            return self._fail(photo.record, error)

    def _fail(self, record: Record, error: ImageError) -> Record:
        return record.failed(self.stage, error.error_class, f"{record.image_id}: {error}")
