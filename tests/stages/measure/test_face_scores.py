"""Landmark scores on a drawn face whose geometry is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhr_batch.stages.context import Context
from dhr_batch.stages.measure.face_scores import (
    NAMES,
    NOSE_DEPTH,
    effect_score,
    judge_score,
    scores,
)
from dhr_batch.stages.tensors import tensor_to_images


@pytest.fixture
def face() -> np.ndarray:
    """A symmetric frontal face: eyes 60 px apart at y = 100, mouth at y = 170."""
    points = np.zeros((68, 2))
    angle = np.linspace(np.pi, 0, 17)
    points[:17] = np.stack([128 + 70 * np.cos(angle), 110 + 100 * np.sin(angle)], 1)
    for brow, x in ((17, 98), (22, 158)):
        points[brow : brow + 5] = [(x + dx, 82) for dx in (-20, -10, 0, 10, 20)]
    points[27:31] = [(128, y) for y in (100, 113, 126, 139)]
    points[31:36] = [(128 + dx, 148) for dx in (-12, -6, 0, 6, 12)]
    eye = [(-12, 0), (-5, -4), (5, -4), (12, 0), (5, 4), (-5, 4)]
    points[36:42], points[42:48] = np.add(eye, (98, 100)), np.add(eye, (158, 100))
    outer = [(-25, 0), (-15, -6), (-6, -9), (0, -8), (6, -9), (15, -6), (25, 0)]
    outer += [(15, 7), (6, 10), (0, 11), (-6, 10), (-15, 7)]
    inner = [(-20, 0), (-8, -1), (0, -1), (8, -1), (20, 0), (8, 1), (0, 1), (-8, 1)]
    points[48:] = np.add(outer + inner, (128, 170))
    return points


def mirrored(points: np.ndarray, width: int = 256) -> np.ndarray:
    order = [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31]
    order += [45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]
    order += [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
    return points[order] * (-1, 1) + (width, 0)


def moved(points: np.ndarray, rows: list[int], dx: float, dy: float) -> np.ndarray:
    points = points.copy()
    points[rows] += (dx, dy)
    return points


def test_known_geometry(face):
    result = scores(face)
    assert tuple(result) == NAMES
    assert result["mouth_width"] == pytest.approx(50 / 60)
    assert result["mouth_open"] == pytest.approx(2 / 60)
    assert result["smile"] == pytest.approx(50 / 60 - 22 / 60)
    assert result["eyes_open"] == pytest.approx(8 / 24)
    assert result["brow_raise"] == pytest.approx(18 / 60)
    assert result["pitch"] == pytest.approx((162 - 139) / (162 - 100))
    assert result["yaw"] == pytest.approx(0, abs=1e-12)
    assert result["roll"] == pytest.approx(0)


def test_rotation_scale_and_shift_change_only_roll(face):
    angle = np.radians(20)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    before, after = scores(face), scores(face @ turn * 3.5 + (40, -7))
    assert after.pop("roll") == pytest.approx(before.pop("roll") + 20)
    assert after == pytest.approx(before)


def test_mirroring_flips_yaw_and_roll_only(face):
    turned = moved(face, [30], 9, 2)
    turned = turned @ np.array([[0.995, 0.0998], [-0.0998, 0.995]])
    before, after = scores(turned), scores(mirrored(turned))
    assert before["yaw"] == pytest.approx(9 / 60, abs=1e-3)
    for name in ("yaw", "yaw_degrees", "roll"):
        assert after.pop(name) == pytest.approx(-before.pop(name))
    assert after == pytest.approx(before)


@pytest.mark.parametrize(
    ("name", "rows", "dy"),
    [
        ("mouth_open", [55, 56, 57, 58, 59, 65, 66, 67], 10),
        ("smile", [48, 54], -6),
        ("brow_raise", list(range(17, 27)), -5),
        ("eyes_open", [40, 41, 46, 47], 4),
        ("pitch", [30], -5),
    ],
)
def test_the_movement_it_is_named_after_raises_a_score(face, name, rows, dy):
    before = scores(face)
    after = scores(moved(face, rows, 0, dy))
    assert after[name] > before[name] + 0.03
    if name == "mouth_open":
        assert after["smile"] == pytest.approx(before["smile"])


def test_bad_landmarks_are_refused(face):
    with pytest.raises(ValueError, match=r"\[68, 2\], got \[5, 2\]"):
        scores(face[:5])
    with pytest.raises(ValueError, match="not finite"):
        scores(np.full((68, 2), np.nan))
    with pytest.raises(ValueError, match="eyes coincide"):
        scores(np.zeros((68, 2)))


def test_a_published_smile_direction_raises_the_smile_step_by_step(models, shared):
    direction = np.load(shared / "data" / "dir_e4e_smile.npy").reshape(512).astype(np.float32)
    context = Context("cpu", "mobilestylegan-256", models)
    net = context.network("generator", context.generator)
    landmarks = context.network("landmarks", "dlib68")
    z = torch.randn(1, 512, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        ws = net.broadcast(net.map(z, 0.7))
        step = net.expand_direction(torch.from_numpy(direction))
        renders = [tensor_to_images(net.synthesize(ws + a * step))[0] for a in (-2, -1, 0, 1, 2)]
    box, found_by = landmarks.locate(renders[2])
    assert found_by == "hog"
    smiles = [scores(landmarks.find(image, box))["smile"] for image in renders]
    assert smiles == sorted(set(smiles))
    assert smiles[-1] - smiles[0] > 0.3


@pytest.mark.parametrize("degrees", [-35.0, -5.0, 20.0])
def test_yaw_in_degrees_is_the_angle_of_a_turned_head(face, degrees):
    depth = np.zeros(68)
    depth[30] = NOSE_DEPTH * 60
    angle = np.radians(degrees)
    turned = face.copy()
    turned[:, 0] = 128 + (face[:, 0] - 128) * np.cos(angle) + depth * np.sin(angle)
    assert scores(turned)["yaw_degrees"] == pytest.approx(degrees)


@pytest.mark.parametrize(
    ("edit", "effect", "judge"),
    [
        ("smile_closed", "smile", "happy"),
        ("yaw", "yaw_degrees", "yaw_mesh"),
        ("yaw_degrees", "yaw_degrees", "yaw_mesh"),
        ("pitch_degrees", "pitch", "pitch_mesh"),
        ("age", "age", "age_face_api"),
    ],
)
def test_scores_of_edits_and_of_another_judge(edit: str, effect: str, judge: str) -> None:
    assert effect_score(edit, {"score_yaw", "score_yaw_degrees"}) == f"score_{effect}"
    assert judge_score(edit) == f"score_{judge}"
