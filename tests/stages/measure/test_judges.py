"""Networks that judge faces: known photographs, moved pictures, several threads."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dhr_batch.stages.context import Context
from dhr_batch.stages.measure import judges
from dhr_batch.stages.networks.faces.identity import Portrait

SCORERS = ("age-gender", "expression", "face-api", "mesh")


@pytest.fixture(scope="session")
def judge(models: Callable[[str], Path]) -> Callable[[str], judges.Mesh]:
    def make(name: str) -> judges.Mesh:
        if name == "expression" and importlib.util.find_spec("h5py") is None:
            pytest.skip("the package h5py is not installed")
        return Context("cpu", "mobilestylegan-256", models).network("scores", name)

    return make


@pytest.fixture(scope="session")
def face(models: Callable[[str], Path], astronaut: np.ndarray) -> Portrait:
    """The face of the astronaut as alignment cuts it out, a smiling woman of 34 years."""
    rgb = np.ascontiguousarray(cv2.resize(astronaut[:256, 96:352], (256, 256)))
    finder = Context("cpu", "tiny", models).network("landmarks", "dlib68")
    return Portrait(rgb, finder.find(rgb, finder.locate(rgb)[0]))


def turned(rgb: np.ndarray, degrees: float) -> np.ndarray:
    """Turn a picture clockwise around its middle."""
    side = len(rgb)
    around = cv2.getRotationMatrix2D((side / 2, side / 2), -degrees, 1)
    return cv2.warpAffine(rgb, around, (side, side), borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize(
    ("name", "score", "low", "high"),
    [
        ("age-gender", "age", 24, 40),
        ("age-gender", "gender", -40, -1),
        ("expression", "happy", 0.9, 1),
        ("face-api", "age_face_api", 18, 45),
        ("face-api", "gender_face_api", -40, -1),
        ("mesh", "roll_mesh", -12, 12),
    ],
)
def test_a_known_face(judge, face, name, score, low, high):
    found = judge(name).score(face)
    assert tuple(found) == judge(name).names
    assert low <= found[score] <= high


@pytest.mark.parametrize("name", SCORERS[:3])
def test_no_landmarks_no_scores(judge, face, name):
    assert judge(name).score(Portrait(face.rgb)) is None


@pytest.mark.parametrize("name", SCORERS)
def test_threads_get_what_one_thread_gets(judge, face, name):
    shades = [Portrait(np.uint8(face.rgb * s), face.landmarks) for s in (1, 0.9, 0.8, 0.7)]
    made = judge(name)
    alone = [made.score(shade) for shade in shades]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(made.score, shades * 3)) == alone * 3
    assert alone[0] != alone[3]


def test_a_turned_picture_changes_only_the_roll_of_the_mesh(judge, face):
    mesh = judge("mesh")
    before, after = mesh.score(face), mesh.score(Portrait(turned(face.rgb, 20)))
    assert after["roll_mesh"] - before["roll_mesh"] == pytest.approx(20, abs=3.5)
    for name in ("yaw_mesh", "pitch_mesh"):
        assert after[name] == pytest.approx(before[name], abs=3)


def test_a_mirrored_picture_changes_the_signs_of_the_mesh(judge, face):
    mesh = judge("mesh")
    before = mesh.score(face)
    after = mesh.score(Portrait(np.ascontiguousarray(face.rgb[:, ::-1])))
    for name, sign in (("yaw_mesh", -1), ("pitch_mesh", 1), ("roll_mesh", -1)):
        assert after[name] == pytest.approx(sign * before[name], abs=6)


def test_a_picture_without_a_face_has_no_mesh(judge):
    grey = np.full((256, 256, 3), 128, np.uint8)
    assert judge("mesh").points(grey) is None


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(0, 0, 0), (30, 0, 0), (0, -15, 0), (-20, 10, 25)]
)
def test_the_pose_of_known_points(yaw, pitch, roll):
    points = np.random.default_rng(0).normal(0, 1, (judges.POINTS, 3))
    for i, (left, right) in enumerate(judges._PAIRS):
        points[left], points[right] = (-1, i / 9, 0.3), (1, i / 9, 0.3)
    for v, rows in ((-1, judges._UPPER), (1, judges._LOWER)):
        points[list(rows)] = (0, v, 0)
    # Axes point right, down and away, and the scores turn the nose right, up and clockwise.
    moved = Rotation.from_euler("xyz", (-pitch, -yaw, roll), degrees=True).apply(points)
    found = judges.pose(moved * 3 + 7)
    expected = {"yaw_mesh": yaw, "pitch_mesh": pitch, "roll_mesh": roll}
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_box_keeps_proportions_and_is_black_beyond_the_face():
    rgb = np.full((100, 100, 3), 200, np.uint8)
    corners = np.array([(40.0, 10.0), (60.0, 90.0)])
    box = judges._box(rgb, corners, 0.0, 64)
    assert box.shape == (64, 64, 3)
    assert (box[:, 24:40] == 200).all()
    assert (box[:, :23] == 0).all()
    assert (box[:, 41:] == 0).all()
