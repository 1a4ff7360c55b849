"""The real networks on a real photograph, with the default preset's settings and fewer steps."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from dhr_batch.pipeline.planning import config
from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.record import Record

FACE = (2, *range(6, 14))


@pytest.fixture(scope="module")
def record(models) -> Record:
    settings = config.resolve(config.build([{"dataset": "folder"}]), gpus=0, images=1)
    assert settings.generator == "mobilestylegan-256"
    for name in ("mobilestylegan-ffhq", "stlpips-alex", "dlib-landmarks68", "dlib-face-resnet"):
        models(name)
    context = Context("cpu", settings.generator, models)
    file = io.BytesIO()
    Image.fromarray(astronaut()).save(file, "PNG")
    record = Record("astronaut.png", "astronaut.png", data=file.getvalue())
    fewer = {"embed": {"steps": 30}, "refine": {"steps": 20}}
    for family in registry.STAGES:
        section = getattr(settings, family) | fewer.get(family, {})
        member = registry.lookup(family, section["name"])
        stage = member(member.Options(**section))
        stage.setup(context)
        (record,) = stage.run([record])
        assert record.failure is None, record.failure
    return record


def value(record: Record, stage: str, metric: str) -> float:
    (found,) = [m.value for m in record.metrics if (m.stage, m.metric) == (stage, metric)]
    return found


def test_refinement_comes_closer_than_the_embedding(record):
    gain = value(record, "refined", "psnr") - value(record, "inverted", "psnr")
    assert gain > 3
    for part in ("_in", "_out"):
        assert value(record, "refined", "psnr" + part) > value(record, "inverted", "psnr" + part)
    assert value(record, "refined", "st_lpips_alex") < 0.5 * value(
        record, "inverted", "st_lpips_alex"
    )
    distance = value(record, "refined", "identity_dlib_distance")
    assert distance < value(record, "inverted", "identity_dlib_distance")


def test_the_face_is_in_domain_and_the_background_is_not(record):
    assert record.mask is not None
    assert record.labels is not None
    assert record.mask[np.isin(record.labels, FACE)].mean() > 0.6
    assert record.mask[record.labels == 0].mean() < 0.05


def test_smile_edits_move_the_smile_and_keep_the_person(record):
    edits = {e.strength: e for e in record.edits if e.name == "smile"}
    refined = value(record, "refined", "score_smile")
    strengths = sorted([*edits, 0.0])
    scores = [edits[s].effect["smile"] if s else refined for s in strengths]
    assert scores[0] < refined < scores[-1]
    for strength in (-1, 1):
        stage = f"edit:smile:{strength}"
        assert value(record, stage, "identity_dlib_distance") < 0.6
        assert value(record, stage, "change_out") < value(record, stage, "change_in")
