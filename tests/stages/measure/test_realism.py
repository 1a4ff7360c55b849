"""The realism of mouths on made pictures: what lowers it, and what does not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dhr_batch.stages.measure.realism import realism

SIZE = 256
# A rectangle that covers the mouth, and what lies around it.
MOUTH = np.s_[140:228, 85:171]


def face() -> np.ndarray:
    """A picture with structures of all sizes, uint8 [256, 256, 3]."""
    noise = np.random.default_rng(0).normal(size=(SIZE, SIZE, 3)).astype(np.float32)
    rough = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1, 2, 4, 8))
    return np.clip(128 + 25 * rough, 0, 255).astype(np.uint8)


def points(size: int = SIZE) -> np.ndarray:
    """Landmarks of a face with the eyes a quarter of the picture apart, [68, 2]."""
    found = np.full((68, 2), 128.0)
    found[36:42], found[42:48], found[48:68] = (96, 120), (160, 120), (128, 184)
    return (found + 0.5) * size / SIZE - 0.5


def value(render: np.ndarray, photograph: np.ndarray, landmarks: np.ndarray | None = None) -> float:
    found = points(len(photograph)) if landmarks is None else landmarks
    (value,) = realism(np.stack([photograph, render]), np.stack([found, found]), "cpu")
    return float(value)


def changed(sigma: float, where=MOUTH) -> np.ndarray:
    picture = face()
    picture[where] = cv2.GaussianBlur(picture, (0, 0), sigma)[where]
    return picture


def test_the_photograph_itself_has_0():
    assert value(face(), face()) == 0


def test_smears_lower_it_and_more_so_the_wider_they_are():
    slight, smeared, melted = (value(changed(sigma), face()) for sigma in (1, 3, 6))
    assert 0 > slight > smeared > melted
    assert melted < -0.5


def test_a_grid_that_the_photograph_lacks_lowers_it():
    flat = cv2.GaussianBlur(face(), (0, 0), 8)
    grid = flat.astype(int) + 12 * (np.arange(SIZE)[:, None, None] // 4 % 2)
    assert value(np.clip(grid, 0, 255).astype(np.uint8), flat) < -0.15


def test_half_the_contrast_has_the_logarithm_of_two():
    half = np.rint(128 + (face().astype(float) - 128) / 2).astype(np.uint8)
    assert value(half, face()) == pytest.approx(-np.log(2), abs=0.02)
    assert value(face(), half) == pytest.approx(-np.log(2), abs=0.02)


def test_lightness_is_one_of_three_channels():
    grey = np.repeat(face()[..., :1], 3, 2)
    half = np.rint(128 + (grey.astype(float) - 128) / 2).astype(np.uint8)
    assert value(half, grey) == pytest.approx(-np.log(2) / 3, abs=0.02)


def test_only_the_mouth_counts():
    assert value(changed(4, np.s_[:130]), face()) == 0
    # The region is higher than wide: 18 by 14 around (128, 184).
    beside, below = changed(4, np.s_[150:220, 142:148]), changed(4, np.s_[198:204, 94:162])
    assert value(beside, face()) > value(below, face()) + 0.01


def test_it_follows_the_face():
    """A face that is elsewhere, turned and larger has the same value."""
    turned = cv2.getRotationMatrix2D((128, 160), 20, 1.2)
    turned[:, 2] += (-7, -12)
    moved = points() @ turned[:, :2].T + turned[:, 2]
    pictures = [
        cv2.warpAffine(p, turned, (SIZE, SIZE), flags=cv2.INTER_CUBIC) for p in (face(), changed(4))
    ]
    assert value(pictures[1], pictures[0], moved) == pytest.approx(
        value(changed(4), face()), abs=0.06
    )


def test_it_does_not_depend_on_the_size_of_pictures():
    large = [
        cv2.resize(p, (SIZE * 2, SIZE * 2), interpolation=cv2.INTER_CUBIC)
        for p in (face(), changed(4))
    ]
    assert value(large[1], large[0]) == pytest.approx(value(changed(4), face()), abs=0.03)


def test_renders_are_independent():
    pictures = np.stack([face(), changed(2), changed(5)])
    found = realism(pictures, np.stack([points()] * 3), "cpu")
    alone = [value(picture, face()) for picture in pictures[1:]]
    assert found == pytest.approx(alone, abs=1e-6)
