"""Metrics against analytic values, and the rows of the stage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from skimage.metrics import structural_similarity

from dhr_batch.stages import metrics
from dhr_batch.stages.base import Context, Edit, Record
from dhr_batch.stages.measure import Standard


def noise(seed: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def grey(level: int, size: int = 32) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def test_psnr_of_known_pairs():
    assert metrics.mse(grey(0), grey(255)) == pytest.approx(4)
    assert metrics.psnr(grey(0), grey(255)) == pytest.approx(0, abs=1e-12)
    assert metrics.mse(grey(100), grey(151)) == pytest.approx(0.16)
    assert metrics.psnr(grey(100), grey(151)) == pytest.approx(10 * math.log10(25))
    assert metrics.psnr(grey(7), grey(7)) == math.inf


def test_ganinverter_psnr_is_three_decibels_lower():
    a, b = noise(0), noise(1)
    difference = metrics.psnr(a, b) - metrics.psnr_ganinverter(a, b)
    assert difference == pytest.approx(3.0103, abs=1e-4)


def test_parts_average_to_the_whole():
    a, b = noise(0), noise(1)
    part = np.zeros((32, 32), bool)
    part[:8] = True
    inside, outside = metrics.mse(a, b, part), metrics.mse(a, b, ~part)
    assert metrics.mse(a, b) == pytest.approx(0.25 * inside + 0.75 * outside)
    changed = a.copy()
    changed[:8] = 255 - changed[:8]
    assert metrics.mse(a, changed, ~part) == 0
    assert metrics.mse(a, changed, part) > 0


def test_ssim_equals_scikit_image():
    a = noise(0, 48)
    b = (0.7 * a + 0.3 * noise(1, 48)).astype(np.uint8)
    expected = structural_similarity(a, b, channel_axis=2, data_range=255)
    similarity = metrics.ssim_map(a, b)
    assert metrics.ssim(similarity) == pytest.approx(expected, abs=1e-12)
    assert metrics.ssim(similarity, np.ones((48, 48), bool)) == pytest.approx(expected, abs=1e-12)
    border = np.zeros((48, 48), bool)
    border[0] = True
    assert math.isnan(metrics.ssim(similarity, border))


def test_perceptual_parts():
    maps = [torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 4, 4)]
    maps[1][:, :, :2] = 3
    top = torch.zeros(2, 1, 32, 32)
    top[:, :, :16] = 1
    assert metrics.perceptual_distance(maps).tolist() == [2.5, 2.5]
    assert metrics.perceptual_distance(maps, torch.ones(2, 1, 32, 32)).tolist() == [2.5, 2.5]
    assert metrics.perceptual_distance(maps, top).tolist() == [4, 4]
    assert metrics.perceptual_distance(maps, 1 - top).tolist() == [1, 1]


def test_a_part_of_a_few_pixels_has_no_rows():
    mask = np.ones((32, 32), bool)
    assert set(metrics.parts_of(mask)) == {"", "_in"}
    assert set(metrics.parts_of(~mask)) == {"", "_out"}
    mask[0, :3] = False
    assert set(metrics.parts_of(mask)) == {"", "_in"}
    mask[:4] = False
    assert set(metrics.parts_of(mask)) == {"", "_in", "_out"}


def test_shrink_keeps_small_pictures_and_majorities():
    assert metrics.shrink(grey(9, 16), 32).shape == (16, 16, 3)
    assert metrics.shrink(grey(9, 64), 32).tolist() == grey(9, 32).tolist()
    mask = np.zeros((4, 4), bool)
    mask[0, :3] = mask[1, 0] = True
    assert metrics.shrink_mask(mask, 2).tolist() == [[True, False], [False, False]]


def record(seed: int) -> Record:
    mask = np.zeros((32, 32), bool)
    mask[8:] = True
    refined = noise(seed + 2)
    edited = refined.copy()
    edited[8:] = 255 - edited[8:]
    edit = Edit("smile", -1.50, "0" * 64, np.zeros((8, 512), np.float32), edited)
    return Record(
        str(seed),
        "",
        image=noise(seed),
        inverted=noise(seed + 1),
        refined=refined,
        mask=mask,
        edits=(edit,),
    )


def no_models(name):
    raise AssertionError(f"asked for {name}")


@pytest.fixture
def tiny() -> Standard:
    options = Standard.Options(perceptual=("tiny",), identity="none", landmarks="none")
    stage = Standard(options)
    stage.setup(Context("cpu", "tiny", no_models))
    return stage


def test_rows_of_a_run_without_models(tiny):
    (done,) = tiny.run([record(0)])
    assert done.failure is None
    rows = {(m.stage, m.metric): m for m in done.metrics}
    assert len(rows) == len(done.metrics)
    names = {"psnr", "psnr_ganinverter", "mse", "ssim", "st_tiny_alex"}
    names |= {f"{n}_{part}" for n in names for part in ("in", "out")}
    changes = {"change_in", "change_out"}
    assert {s for s, _ in rows} == {"inverted", "refined", "edit:smile:-1.5"}
    assert {m for s, m in rows if s == "inverted"} == names
    assert {m for s, m in rows if s == "edit:smile:-1.5"} == names | changes
    assert rows["edit:smile:-1.5", "change_out"].value == 0
    assert rows["edit:smile:-1.5", "change_in"].value > 0.1
    assert rows["refined", "psnr"].value == pytest.approx(metrics.psnr(noise(0), noise(2)))
    assert rows["refined", "psnr"].model == "generator=tiny (random weights)"
    assert rows["refined", "st_tiny_alex_in"].model == (
        "st_tiny_alex (random weights); generator=tiny (random weights)"
    )


def test_rows_do_not_depend_on_the_batch(tiny):
    together = tiny.run([record(0), record(10), record(20)])
    alone = [tiny.run([record(seed)])[0] for seed in (0, 10, 20)]
    assert [r.metrics for r in together] == [r.metrics for r in alone]


def test_degenerate_masks_are_legal(tiny):
    full = record(0)
    for value, missing in ((True, "_out"), (False, "_in")):
        full.mask[:] = value
        (done,) = tiny.run([full])
        assert done.failure is None
        assert not any(m.metric.endswith(missing) for m in done.metrics)


def test_large_pictures_are_compared_at_the_stated_size():
    options = Standard.Options(perceptual=("tiny",), identity="none", landmarks="none", size=32)
    stage = Standard(options)
    stage.setup(Context("cpu", "tiny", no_models))
    big = Record(
        "a",
        "",
        image=grey(0, 64),
        inverted=grey(255, 64),
        refined=grey(51, 64),
        mask=np.ones((64, 64), bool),
    )
    (done,) = stage.run([big])
    rows = {(m.stage, m.metric): m for m in done.metrics}
    assert rows["inverted", "psnr"].value == pytest.approx(0, abs=1e-12)
    assert rows["inverted", "psnr"].model.endswith("; at 32 px")


class Faces:
    """Landmarks of a drawn smile: the wider, the brighter the picture. Black shows no face."""

    def __init__(self) -> None:
        self.points = np.random.default_rng(0).uniform(0, 32, (68, 2))
        self.points[36:42, 0], self.points[42:48, 0] = 8, 24
        self.points[[36, 42], 0] -= 2
        self.points[[39, 45], 0] += 2

    def locate(self, rgb):
        return np.zeros(4), "hog" if rgb.any() else "ffhq"

    def find(self, rgb, box=None):
        points = self.points.copy()
        points[48], points[54] = (16 - rgb.mean() / 32, 24), (16 + rgb.mean() / 32, 24)
        return points


class Descriptions:
    def describe(self, rgb, landmarks):
        return np.array([1.0, rgb.mean() / 255])


@pytest.fixture
def with_faces() -> Standard:
    stage = Standard(Standard.Options(perceptual=()))
    context = Context("cpu", "mobilestylegan-256", no_models)
    context._networks[("landmarks", "dlib68")] = Faces()
    context._networks[("identity", "dlib")] = Descriptions()
    stage.setup(context)
    return stage


def face_record(source: int, edited: int) -> Record:
    edit = Edit("smile", 2, "0" * 64, np.zeros((23, 512), np.float32), grey(edited))
    images = {"image": grey(source), "inverted": grey(51), "refined": grey(102)}
    return Record("a", "", **images, mask=np.ones((32, 32), bool), edits=(edit,))


def test_identity_scores_and_effect(with_faces):
    (done,) = with_faces.run([face_record(51, 204)])
    rows = {(m.stage, m.metric): m for m in done.metrics}
    assert rows["inverted", "identity_dlib_distance"].value == 0
    assert rows["inverted", "identity_dlib_cosine"].value == pytest.approx(1)
    assert rows["refined", "identity_dlib_distance"].value == pytest.approx(0.2)
    assert rows["refined", "identity_dlib_distance"].model == (
        "dlib-face-resnet; generator=mobilestylegan-256"
    )
    assert ("source", "identity_dlib_distance") not in rows
    assert rows["source", "score_smile"].model == "dlib-landmarks68"
    assert rows["edit:smile:2", "score_smile"].value == done.edits[0].effect["smile"]
    assert done.edits[0].effect["smile"] > rows["refined", "score_smile"].value
    assert done.notes == ()


def test_a_render_without_a_face_is_noted(with_faces):
    (done,) = with_faces.run([face_record(51, 0)])
    assert done.failure is None
    assert done.notes == ("measure: no face detected in edit:smile:2: no identity, no scores",)
    assert done.edits[0].effect == {}
    edited = {m.metric for m in done.metrics if m.stage == "edit:smile:2"}
    assert "psnr" in edited
    assert not any(name.startswith(("identity", "score")) for name in edited)


def test_identity_without_landmarks_is_refused():
    with pytest.raises(ValidationError, match="identity needs landmarks"):
        Standard.Options(landmarks="none")
