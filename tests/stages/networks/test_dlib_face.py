"""dlib's landmarks and descriptor on real faces."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dhr_batch.stages import ffhq
from dhr_batch.stages.networks import dlib_face
from dhr_batch.stages.networks.identity import Portrait


@pytest.fixture(scope="module")
def landmarks(models):
    return dlib_face.landmarks68(SimpleNamespace(models=models))


@pytest.fixture(scope="module")
def identity(models):
    return dlib_face.identity(SimpleNamespace(models=models))


def test_landmarks_on_an_aligned_crop(golden, shared, landmarks):
    numbers = np.load(golden / "align.npz")
    photo = shared / "golden" / "align" / "obama2_input.png"
    from PIL import Image

    rgb = np.asarray(Image.open(photo).convert("RGB"))
    aligned = ffhq.crop(rgb, numbers["obama2.quad"], 256)
    assert landmarks.locate(aligned)[1] == "hog"
    quad = ffhq.quad_from_landmarks(landmarks.find(aligned))
    np.testing.assert_allclose(quad, ffhq.full_quad(256, 256), atol=12)

    near = landmarks.find_near(rgb, np.array([120.0, 70, 260, 260]))
    assert np.abs(near - numbers["obama2.landmarks"]).mean() < 3


def test_a_crop_without_a_visible_face_uses_the_usual_box(landmarks):
    plain = np.full((200, 200, 3), 128, np.uint8)
    box, found_by = landmarks.locate(plain)
    assert found_by == "ffhq"
    np.testing.assert_allclose(box, np.array(dlib_face.FFHQ_BOX) * 200)
    assert landmarks.find(plain).shape == (68, 2)
    assert landmarks.find(plain[:8, :8]) is None


def test_descriptor_tells_people_apart(golden, shared, landmarks, identity):
    from PIL import Image

    numbers = np.load(golden / "align.npz")

    def describe(name):
        photo = Image.open(shared / "golden" / "align" / f"{name}_input.png").convert("RGB")
        aligned = ffhq.crop(np.asarray(photo), numbers[f"{name}.quad"], 256)
        return identity.describe(Portrait(aligned, landmarks.find(aligned)))

    one, same, other = describe("obama"), describe("obama2"), describe("biden")
    assert one.shape == (128,)
    assert np.linalg.norm(one - same) < 0.6 < np.linalg.norm(one - other)
    assert identity.describe(Portrait(np.zeros((64, 64, 3), np.uint8))) is None


def test_overlap():
    box = np.array([0.0, 0, 2, 2])
    assert dlib_face.overlap(box, box) == 1
    assert dlib_face.overlap(box, box + 1) == pytest.approx(1 / 7)
    assert dlib_face.overlap(box, box + 5) == 0
