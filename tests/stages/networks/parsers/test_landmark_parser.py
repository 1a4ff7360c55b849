from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.parsers import person
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX
from dhr_batch.stages.networks.parsers.landmarks import LandmarkParser, landmark_parser, parse_face
from dhr_batch.stages.networks.parsers.parser import no_parser

SKIN, HAIR, WALL, SHIRT = (205, 150, 120), (60, 40, 30), (120, 150, 190), (30, 60, 140)


def landmarks() -> np.ndarray:
    """A frontal face of the 68-point scheme in an FFHQ-aligned crop of 256 px."""
    angles = np.linspace(np.pi, 0, 17)
    jaw = np.stack([128 + 62 * np.cos(angles), 118 + 100 * np.sin(angles)], 1)
    brows = [[x, 100] for x in (82, 90, 98, 106, 114, 142, 150, 158, 166, 174)]
    nose = [[128, y] for y in (118, 130, 142, 152)]
    nose += [[x, 160] for x in (114, 121, 128, 135, 142)]
    eyes = []
    for x in (100, 156):
        eyes += [[x - 12, 118], [x - 5, 113], [x + 5, 113]]
        eyes += [[x + 12, 118], [x + 5, 122], [x - 5, 122]]
    mouth = [[102, 184], [112, 179], [122, 177], [128, 178], [134, 177], [144, 179], [154, 184]]
    mouth += [[144, 193], [134, 197], [128, 198], [122, 197], [112, 193]]
    mouth += [[106, 184], [120, 183], [128, 184], [136, 183], [150, 184]]
    mouth += [[136, 188], [128, 189], [120, 188]]
    return np.concatenate([jaw, brows, nose, eyes, mouth]).astype(np.float64)


@pytest.fixture
def portrait() -> np.ndarray:
    """A painted head with hair, neck and shirt before a wall."""
    image = np.full((256, 256, 3), WALL, np.uint8)
    cv2.rectangle(image, (60, 225), (196, 256), SHIRT, -1)
    cv2.ellipse(image, (128, 108), (84, 90), 0, 0, 360, HAIR, -1)
    cv2.rectangle(image, (96, 190), (160, 236), SKIN, -1)
    cv2.ellipse(image, (128, 126), (62, 92), 0, 0, 360, SKIN, -1)
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_class_order_is_that_of_celebamask_hq() -> None:
    assert len(CLASSES) == 19
    want = {"background": 0, "neck": 1, "face": 2, "cloth": 3, "upper_lip": 13, "hair": 14}
    assert {k: INDEX[k] for k in want} == want
    assert CLASSES[15:] == ("glasses", "hat", "earring", "necklace")


def test_painted_face(portrait: np.ndarray) -> None:
    probs = parse_face(portrait, landmarks())
    assert probs.shape == (19, 256, 256)
    assert probs.dtype == np.float32
    assert probs.min() >= 0
    np.testing.assert_allclose(probs.sum(0), 1, atol=1e-4)
    labels = probs.argmax(0)
    where = {
        "face": (150, 85), "nose": (145, 128), "right_eye": (118, 100), "left_eye": (118, 156),
        "right_brow": (100, 98), "left_brow": (100, 158), "upper_lip": (180, 128),
        "lower_lip": (194, 128), "inner_mouth": (186, 128), "hair": (28, 128),
        "background": (20, 20), "neck": (224, 128), "cloth": (250, 80),
    }  # fmt: skip
    assert {name: CLASSES[labels[at]] for name, at in where.items()} == {n: n for n in where}


def test_occluder_of_another_colour_is_neither_skin_nor_mouth(portrait: np.ndarray) -> None:
    masked = portrait.copy()
    cv2.rectangle(masked, (60, 150), (196, 222), (40, 90, 200), -1)
    labels = parse_face(masked, landmarks()).argmax(0)
    covered = labels[156:205, 85:170]
    assert np.isin(covered, (INDEX["cloth"], INDEX["background"])).mean() > 0.9
    assert labels[128, 85] == INDEX["face"]
    assert labels[118, 100] == INDEX["right_eye"]


def test_grey_pictures_have_no_occluders(portrait: np.ndarray) -> None:
    grey = portrait.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    labels = parse_face(grey, landmarks()).argmax(0)
    assert (labels[140:200, 90:166] != INDEX["cloth"]).all()


def test_same_picture_same_result(portrait: np.ndarray) -> None:
    first = parse_face(portrait, landmarks())
    np.testing.assert_array_equal(first, parse_face(portrait, landmarks()))


@pytest.mark.parametrize("value", [0, 255])
def test_flat_picture_is_no_error(value: int) -> None:
    probs = parse_face(np.full((256, 256, 3), value, np.uint8), landmarks())
    assert np.isfinite(probs).all()


def test_landmarks_outside_the_picture_are_no_error(portrait: np.ndarray) -> None:
    for points in (landmarks() + 150, landmarks() - 400, landmarks() * 0):
        assert np.isfinite(parse_face(portrait, points)).all()


class Finder:
    def __init__(self, found_by: str) -> None:
        self.found_by = found_by

    def locate(self, image: np.ndarray):
        return np.zeros(4), self.found_by

    def find(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        return landmarks()


class Seer:
    def __init__(self, faces: int) -> None:
        self.faces = faces

    def detect(self, images):
        return [[object()] * self.faces for _ in images]


def test_no_face_is_none_and_a_second_opinion_is_asked(portrait: np.ndarray) -> None:
    assert LandmarkParser(Finder("hog"), Seer(0)).parse(portrait) is not None
    assert LandmarkParser(Finder("ffhq"), Seer(1)).parse(portrait) is not None
    assert LandmarkParser(Finder("ffhq"), Seer(0)).parse(portrait) is None
    assert no_parser(Context("cpu", "none", models=Path)).parse(portrait) is None


def test_other_sizes_are_resized_back(portrait: np.ndarray) -> None:
    parser = LandmarkParser(Finder("hog"))
    small, large = parser.parse(portrait), parser.parse(portrait.repeat(2, 0).repeat(2, 1))
    assert large.shape == (19, 512, 512)
    np.testing.assert_allclose(large.sum(0), 1, atol=1e-4)
    assert (large.argmax(0)[::2, ::2] == small.argmax(0)).mean() > 0.97


@pytest.mark.parametrize("name", ["obama", "obama2", "biden", "astronaut"])
def test_photographs(models, shared: Path, name: str) -> None:
    parser = landmark_parser(Context("cpu", "none", models=models))
    image = np.asarray(Image.open(shared / "golden" / "align" / f"{name}_crop256.png"))[..., :3]
    probs = parser.parse(image)
    share = np.bincount(probs.argmax(0).ravel(), minlength=19) / 256**2
    face = share[INDEX["face"]] + share[INDEX["nose"]] + share[6:10].sum() + share[11:14].sum()
    assert 0.15 < face < 0.4
    assert 0.05 < share[INDEX["hair"]] < 0.45
    assert share[INDEX["background"]] + share[INDEX["cloth"]] > 0.2
    assert probs[INDEX["background"], :30, :30].mean() > 0.8


def test_noise_has_no_face(models) -> None:
    parser = landmark_parser(Context("cpu", "none", models=models))
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    assert parser.parse(noise) is None


def test_what_colours_miss_of_the_person_is_cloth(portrait: np.ndarray) -> None:
    """Cloth is out-of-domain as the background is, and moves with the person."""
    alone = LandmarkParser(Finder("hog"))
    probs = alone.parse(portrait)
    missed = np.zeros((256, 256), np.float32)
    missed[:60, :30] = 0.9
    found = person.PersonParser(Finder("hog"), Seer(1), lambda image: missed).parse(portrait)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-4)
    assert (probs.argmax(0)[:60, :30] == INDEX["background"]).all()
    assert (found.argmax(0)[:60, :30] == INDEX["cloth"]).all()
    others = np.delete(np.arange(19), [INDEX["background"], INDEX["cloth"]])
    np.testing.assert_array_equal(found[others], probs[others])
    np.testing.assert_array_equal(found[:, 60:], probs[:, 60:])
    blind = person.PersonParser(Finder("ffhq"), Seer(0), lambda image: missed)
    assert blind.parse(portrait) is None


def test_the_person_in_a_photograph(models, astronaut):
    find = person.Person(Context("cpu", "none", models=models))
    view = np.ascontiguousarray(astronaut[:256, 96:352])
    found = find(view)
    assert found.shape == (256, 256)
    assert found[60:200, 100:150].min() > 0.9
    assert found[:30, :20].max() < 0.1
    large = find(cv2.resize(view, (512, 512), interpolation=cv2.INTER_NEAREST))
    assert np.abs(cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA) - found).mean() < 0.02
