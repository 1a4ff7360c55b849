"""Stages for photographs with several faces, which the tests themselves put in them.

`Crowd` and `Picky` compute almost nothing: the name of a photograph says how many faces it has and
which of them fail, as in `5-13.png`. `Group` is the real aligner, with a detector that finds two
faces in each picture wider than high.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from dhr_batch.stages.align import FFHQAlign
from dhr_batch.stages.context import Context
from dhr_batch.stages.faces import place
from dhr_batch.stages.networks.faces.detect import Face
from dhr_batch.stages.record import Record
from dhr_batch.tests.faults.stages import Align, FaultOptions, Faulty

HERE = "dhr_batch.tests.pipeline.crowds"
CROWD = {"align": {"name": f"{HERE}:Crowd", "face": "all"}, "embed": {"name": f"{HERE}:Picky"}}
GROUP = {"align": {"name": f"{HERE}:Group", "face": "all"}}


class CrowdOptions(FaultOptions):
    face: str = "largest"


class Crowd(Align):
    Options = CrowdOptions
    aligned: ClassVar[list[str]] = []

    def process(self, records: Sequence[Record]) -> list[Record]:
        self.aligned.extend(record.image_id for record in records)
        counts = [int(place(record)[0].partition("-")[0]) for record in records]
        return [
            replace(record, faces=count)
            for record, count in zip(super().process(records), counts, strict=True)
        ]


class Picky(Faulty):
    batches: ClassVar[list[list[str]]] = []

    def process(self, records: Sequence[Record]) -> list[Record]:
        self.batches.append([record.image_id for record in records])
        for record in records:
            image_id, number = place(record)
            if str(number) in image_id.partition("-")[2]:
                raise ArithmeticError(f"face {number} diverged; no way out")
        return super().process(records)


class Group(FFHQAlign):
    def models(self, aligned: bool) -> set[str]:
        return set()

    def setup(self, context: Context) -> None:
        found = SimpleNamespace(detect=_detect, refine=lambda images, faces: list(faces))
        context._networks["detector", "mtcnn"] = found
        super().setup(context)


def _detect(images: Sequence[np.ndarray]) -> list[list[Face]]:
    found = []
    for pixels in images:
        height, width = pixels.shape[:2]
        large, small = _face(0.35 * width, height / 2, 40), _face(0.7 * width, height / 2, 30)
        found.append([large, small] if width > height else [large])
    return found


def _face(x: float, y: float, side: float) -> Face:
    box = np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2])
    at = np.array([(-0.2, -0.1), (0.2, -0.1), (0, 0.1), (-0.17, 0.25), (0.17, 0.25)])
    return Face(box, 1.0, at * side + [x, y])
