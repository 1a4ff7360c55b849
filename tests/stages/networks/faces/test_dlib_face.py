"""dlib's landmarks and descriptor on real faces."""

from __future__ import annotations

from types import SimpleNamespace

import dlib
import numpy as np
import pytest

from dhr_batch.stages import ffhq
from dhr_batch.stages.networks.faces import dlib_face, dlib_resnet
from dhr_batch.stages.networks.faces.identity import Portrait


@pytest.fixture(scope="module")
def landmarks(models):
    return dlib_face.landmarks68(SimpleNamespace(models=models))


@pytest.fixture(scope="module")
def identity(models):
    return dlib_face.identity(SimpleNamespace(models=models, device="cpu"))


def test_landmarks_on_an_aligned_crop(golden, shared, landmarks):
    numbers = np.load(golden / "align.npz")
    photo = shared / "golden" / "align" / "obama2_input.png"
    from PIL import Image

    rgb = np.asarray(Image.open(photo).convert("RGB"))
    aligned = ffhq.crop(rgb, numbers["obama2.quad"], 256)
    assert landmarks.locate(aligned)[1] == "hog"
    assert landmarks.sees(aligned)
    quad = ffhq.quad_from_landmarks(landmarks.find(aligned))
    np.testing.assert_allclose(quad, ffhq.full_quad(256, 256), atol=12)

    near = landmarks.find_near(rgb, np.array([120.0, 70, 260, 260]))
    assert np.abs(near - numbers["obama2.landmarks"]).mean() < 3


def test_a_crop_without_a_visible_face_uses_the_usual_box(landmarks):
    plain = np.full((200, 200, 3), 128, np.uint8)
    box, found_by = landmarks.locate(plain)
    assert found_by == "ffhq"
    assert not landmarks.sees(plain)
    np.testing.assert_allclose(box, np.array(dlib_face.FFHQ_BOX) * 200)
    assert landmarks.find(plain).shape == (68, 2)
    assert landmarks.find(plain[:8, :8]) is None


def test_descriptors_are_those_of_dlib_and_tell_people_apart(
    golden, shared, landmarks, identity, models
):
    from PIL import Image

    numbers = np.load(golden / "align.npz")

    def portrait(name):
        photo = Image.open(shared / "golden" / "align" / f"{name}_input.png").convert("RGB")
        aligned = ffhq.crop(np.asarray(photo), numbers[f"{name}.quad"], 256)
        return Portrait(aligned, landmarks.find(aligned))

    faces = [portrait(name) for name in ("obama", "obama2", "biden")]
    nothing = Portrait(np.zeros((64, 64, 3), np.uint8))
    one, none, same, other = identity.describe([faces[0], nothing, *faces[1:]])
    assert none is None
    assert one.shape == (128,)
    assert np.linalg.norm(one - same) < 0.6 < np.linalg.norm(one - other)
    model = dlib.face_recognition_model_v1(str(models("dlib-face-resnet")))
    for face, found in zip(faces, (one, same, other), strict=True):
        points = [dlib.point(round(x), round(y)) for x, y in face.landmarks]
        shape = dlib.full_object_detection(dlib.rectangle(0, 0, 255, 255), points)
        expected = np.array(model.compute_face_descriptor(face.rgb, shape))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_another_file_of_dlib_is_refused(models, tmp_path):
    content = models("dlib-face-resnet").read_bytes()
    (tmp_path / "cut.dat").write_bytes(content[: content.rindex(b"affine_")])
    with pytest.raises(ValueError, match="not the face descriptor network"):
        dlib_resnet.load(tmp_path / "cut.dat")


def test_overlap():
    box = np.array([0.0, 0, 2, 2])
    assert dlib_face.overlap(box, box) == 1
    assert dlib_face.overlap(box, box + 1) == pytest.approx(1 / 7)
    assert dlib_face.overlap(box, box + 5) == 0
