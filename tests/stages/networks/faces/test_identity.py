"""Identity networks against their authors' code, the crops they see, and their published files."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1, extract_face, fixed_image_standardization
from PIL import Image

from dhr_batch.pipeline.models import catalogue
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.faces import identity
from dhr_batch.stages.networks.faces.detect import Face
from dhr_batch.stages.networks.faces.identity import Portrait


class FixedDetector:
    """Finds the same faces everywhere and counts how often it is asked."""

    def __init__(self, *faces: Face) -> None:
        self.faces, self.calls = list(faces), 0

    def detect(self, images):
        self.calls += len(images)
        return [self.faces for _ in images]


BOX = np.array([40.4, 50.6, 150.2, 190.9])
FACE = Face(BOX, 0.99, identity.TEMPLATE * 1.5 + (20, 30))


@pytest.fixture
def context(tmp_path):
    """Models are files of the temporary folder."""

    def make(*faces: Face) -> Context:
        context = Context("cpu", "tiny", lambda name: tmp_path / name)
        context._networks["detector", "mtcnn"] = FixedDetector(*faces)
        return context

    return make


def photograph(size: int = 256) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("fixture", "name"), [("id_irse50", "arcface"), ("id_curricularface_ir101", "curricularface")]
)
def test_descriptors_equal_published(fixture, name, golden_case, context, tmp_path):
    case = golden_case(fixture)
    weights = case.state()
    for key, first in case.facts["fill_check"].items():
        assert weights[key].flatten()[:3].tolist() == first
    torch.save(weights, tmp_path / {"arcface": "arcface-irse50"}.get(name, "curricularface-ir101"))
    net = getattr(identity, name)(context()).net
    with torch.no_grad():
        features = net.body(net.input_layer(case.input("face")))
        case.check("before_norm", net.output_layer(features))
        case.check("embedding", net(case.input("face")))
        if name == "arcface":
            faces = identity.loss_crop(case.input("image256"))
            case.check("embedding_of_256", net(faces))


class Mean(torch.nn.Module):
    """Stands for a network: hands on what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.empty(0)

    def forward(self, faces):
        self.seen = faces
        return faces.mean((2, 3))


def test_arcface_sees_the_fixed_crop_of_256_px(context):
    rgb = np.zeros((512, 512, 3), np.uint8)
    rgb[70:446, 64:440] = 255
    network = identity.ArcFace(Mean(), context())
    np.testing.assert_allclose(network.describe([Portrait(rgb)])[0], [1, 1, 1], atol=0.01)


def test_curricularface_sees_the_face_on_the_template(context):
    """Eyes, nose and mouth of a turned, larger face come to lie where the network expects them."""
    angle, centre = np.deg2rad(20), identity.TEMPLATE.mean(0)
    turn = 1.7 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (identity.TEMPLATE - centre) @ turn.T + (130, 120)
    rgb = np.zeros((256, 256, 3), np.uint8)
    for (x, y), colour in zip(points, (40, 80, 120, 160, 200), strict=True):
        cv2.circle(rgb, (round(x), round(y)), 8, (colour,) * 3, -1)
    crop = identity.aligned_crop(rgb, points)
    assert crop.shape == (112, 112, 3)
    seen = [int(crop[round(y), round(x), 0]) for x, y in identity.TEMPLATE]
    assert seen == [40, 80, 120, 160, 200]
    network = identity.CurricularFace(Mean(), context(Face(BOX, 1, points)))
    network.describe([Portrait(rgb)])
    assert torch.equal(network.net.seen, identity._unit(crop))


def test_facenet_sees_what_its_own_package_shows_it(context):
    network = identity.FaceNet(Mean(), context(FACE))
    network.describe([Portrait(photograph())])
    face = extract_face(Image.fromarray(photograph()), BOX, image_size=160)
    wanted = fixed_image_standardization(face)
    torch.testing.assert_close(network.net.seen[0], wanted, atol=1e-5, rtol=0)


def test_a_box_beyond_the_picture_is_cut(context):
    outside = Face(np.array([-30.0, -20, 300, 400]), 1, FACE.points)
    network = identity.FaceNet(Mean(), context(outside))
    assert network.describe([Portrait(photograph())])[0] is not None
    np.testing.assert_array_equal(identity.box_crop(photograph(160), outside.box), photograph(160))


def test_a_face_is_looked_for_once_and_may_be_missing(context):
    found = context(FACE)
    networks = [identity.CurricularFace(Mean(), found), identity.FaceNet(Mean(), found)]
    portrait = Portrait(photograph())
    assert all(network.describe([portrait])[0] is not None for network in networks)
    assert found.network("detector", "mtcnn").calls == 1
    none = context()
    for network in (identity.CurricularFace(Mean(), none), identity.FaceNet(Mean(), none)):
        assert network.describe([Portrait(photograph())]) == [None]


def test_the_published_facenet_file_is_loaded(context, tmp_path):
    published = InceptionResnetV1(classify=True, num_classes=11)
    torch.save(published.state_dict(), tmp_path / "facenet-vggface2")
    network = identity.facenet(context(FACE))
    (descriptor,) = network.describe([Portrait(photograph())])
    face = extract_face(Image.fromarray(photograph()), BOX, image_size=160)
    published.eval().classify = False
    with torch.no_grad():
        wanted = published(fixed_image_standardization(face)[None])[0].numpy()
    np.testing.assert_allclose(descriptor, wanted, atol=1e-5)
    assert np.linalg.norm(descriptor) == pytest.approx(1, abs=1e-5)


def test_another_file_is_refused_by_its_key(context, tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "arcface-irse50")
    with pytest.raises(ValueError, match=r"arcface-irse50 does not fit IRBackbone: input_layer"):
        identity.arcface(context())


@pytest.mark.parametrize("name", ["arcface-irse50", "curricularface-ir101", "facenet-vggface2"])
def test_a_missing_file_names_its_command(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path))
    with pytest.raises(catalogue.ModelMissing, match=f"dhr-batch models pull {name} --file"):
        catalogue.path(name)
