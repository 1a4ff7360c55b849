"""FFHQ geometry against the published implementation's numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dhr_batch.stages import ffhq

NAMES = ("obama", "obama2", "biden", "astronaut", "astronaut_rot_tight", "obama_tight_left")


@pytest.fixture(scope="module")
def numbers(golden):
    return np.load(golden / "align.npz")


@pytest.fixture(scope="module")
def facts(golden):
    return {
        image["name"]: image for image in json.loads((golden / "align.json").read_text())["images"]
    }


def photograph(shared, name, kind="input"):
    return np.asarray(Image.open(shared / "golden" / "align" / f"{name}_{kind}.png").convert("RGB"))


@pytest.mark.parametrize("name", NAMES)
def test_quad_matches_golden(numbers, facts, name):
    quad = ffhq.quad_from_landmarks(numbers[f"{name}.landmarks"])
    np.testing.assert_allclose(quad, numbers[f"{name}.quad"], atol=1e-6, rtol=0)
    assert ffhq.quad_side(quad) == pytest.approx(facts[name]["qsize"], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_local_quad_matches_golden(numbers, facts, name):
    blank = Image.new("RGB", tuple(facts[name]["size"]))
    source, local = ffhq.warp_source(blank, numbers[f"{name}.quad"], 256)
    assert list(source.size) == facts[name]["image_before_transform_256"]
    np.testing.assert_allclose(local, numbers[f"{name}.quad_local256"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_crop_matches_golden(shared, numbers, name):
    photo, quad = photograph(shared, name), numbers[f"{name}.quad"]
    expected = photograph(shared, name, "crop256").astype(int)
    difference = np.abs(ffhq.crop(photo, quad, 256).astype(int) - expected)
    assert difference.max() <= 3
    assert difference.mean() < 0.5

    small = ffhq.crop(photo, quad, 48).astype(int)
    assert np.abs(small - numbers[f"{name}.crop48"]).max() <= 2

    large = ffhq.crop(photo, quad, 1024).reshape(128, 8, 128, 8, 3).mean((1, 3))
    assert np.abs(np.rint(large) - numbers[f"{name}.crop1024_area128"]).max() <= 1


def test_crop_of_a_plain_square_is_a_resize():
    y, x = np.mgrid[:96, :96]
    photo = np.stack([x * 2, y * 2, x + y], -1).astype(np.uint8)
    quad = ffhq.full_quad(64, 64) + 16
    difference = ffhq.crop(photo, quad, 64).astype(int) - photo[16:80, 16:80]
    assert np.abs(difference).max() <= 3


def test_outside_share():
    assert ffhq.outside_share(ffhq.full_quad(100, 100), 100, 100) == 0
    assert ffhq.outside_share(ffhq.full_quad(100, 100) + np.array([50, 0]), 100, 100) == 0.5


def test_a_quad_beside_the_photograph_is_refused():
    with pytest.raises(ValueError, match="outside"):
        ffhq.crop(np.zeros((64, 64, 3), np.uint8), ffhq.full_quad(32, 32) + 400, 32)
