"""Edits back in their photographs: the same place, nothing else touched, no seam."""

from __future__ import annotations

import numpy as np
import pytest

from dhr_batch.stages.ffhq import crop, crop_of_photograph, full_quad, quad_side
from dhr_batch.stages.paste_back import Crop, paste_all, paste_back

HEIGHT, WIDTH = 600, 500


def quad(
    side: float, degrees: float = 20.0, centre: tuple[float, float] = (250, 300)
) -> np.ndarray:
    angle = np.deg2rad(degrees)
    right = np.array([np.cos(angle), np.sin(angle)]) * side / 2
    down = np.array([-right[1], right[0]])
    corners = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)], float)
    return np.array(centre) + corners @ np.stack([right, down])


def waves(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth photograph, so that resampling it is almost exact. uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    layers = [np.sin(x / 41 + p) + np.cos(y / 37 - p) for p in (0, 1, 2)]
    return np.rint(127 + 50 * np.dstack(layers)).astype(np.uint8)


def inside(corners: np.ndarray, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    right, down = corners[3] - corners[0], corners[1] - corners[0]
    offset = np.dstack([x, y]) - corners[0]
    u, v = offset @ right / (right @ right), offset @ down / (down @ down)
    return (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)


# Sides that shrink the photograph first (above four crops), enlarge it, and neither.
@pytest.mark.parametrize(("side", "size"), [(300, 64), (290, 24), (321, 40), (120, 64), (40, 64)])
def test_a_crop_lies_where_the_photograph_says(side: float, size: int) -> None:
    """Pixels at whose places the crop is sampled show, in it, what the photograph shows there."""
    photograph, corners = waves(), quad(side)
    found = crop(photograph, corners, size).astype(float)
    back = np.linalg.inv(crop_of_photograph(corners, (WIDTH, HEIGHT), size))
    y, x = np.mgrid[4 : size - 4, 4 : size - 4]
    at = np.stack([x, y, np.ones_like(x)], -1) @ back.T
    expected = [
        127 + 50 * (np.sin(at[..., 0] / 41 + p) + np.cos(at[..., 1] / 37 - p)) for p in (0, 1, 2)
    ]
    error = found[4:-4, 4:-4] - np.dstack(expected)
    # A crop that lay elsewhere would differ by the slopes there times the distance. The constant
    # is half a grey level, which Pillow cuts off.
    slopes = [np.gradient(np.dstack(expected), axis=axis).ravel() for axis in (1, 0)]
    terms = np.stack([*slopes, np.ones(error.size)], 1)
    shift = np.linalg.lstsq(terms, error.ravel())[0][:2] * side / size
    assert np.hypot(*shift) < 0.1, "pixels of the photograph"
    assert abs(error).mean() < 1


def test_an_aligned_photograph_is_its_own_crop() -> None:
    to_crop = crop_of_photograph(full_quad(400, 400), (400, 400), 100)
    first, last = to_crop @ (-0.5, -0.5, 1), to_crop @ (399.5, 399.5, 1)
    np.testing.assert_allclose(first[:2], -0.5)
    np.testing.assert_allclose(last[:2], 99.5)


def test_no_edit_leaves_the_photograph() -> None:
    photograph, corners = waves(), quad(300)
    before = crop(photograph, corners, 64)
    np.testing.assert_array_equal(paste_back(photograph, corners, before, before), photograph)


@pytest.mark.parametrize("corners", [quad(300), quad(300, 5, (60, 80)), quad(90, 45)])
def test_nothing_changes_outside_the_quad(corners: np.ndarray) -> None:
    """Also where the quad leaves the photograph."""
    photograph = waves()
    refined = crop(photograph, corners, 64)
    edited = 255 - refined
    result = paste_back(photograph, corners, refined, edited)
    changed = (result != photograph).any(2)
    assert changed.any()
    assert not (changed & ~inside(corners)).any()


@pytest.mark.parametrize("side", [48.0, 250.0])
def test_a_replaced_middle_shows_the_edit(side: float) -> None:
    """The crop of the result is the edited crop, away from the seam."""
    photograph, corners = waves(), quad(side)
    refined = crop(photograph, corners, 64)
    draw = np.random.default_rng(0).normal(0, 25, (4, 4, 3))
    hill = np.kron(draw, np.ones((16, 16, 1)))
    edited = np.clip(refined + 60 + hill, 0, 255).astype(np.uint8)
    again = crop(paste_back(photograph, corners, refined, edited), corners, 64)
    middle = np.s_[24:40, 24:40]
    assert abs(again[middle].astype(float) - edited[middle]).mean() < 6
    assert abs(again[middle].astype(float) - refined[middle]).mean() > 40


def test_a_slight_edit_keeps_the_detail() -> None:
    """Detail finer than the crop stays where the edit adds a tint too faint to replace it."""
    corners = quad(512, 0, (256, 256))
    noise = np.random.default_rng(0).integers(-40, 40, (512, 512, 3))
    photograph = np.clip(waves(512, 512) + noise, 0, 255).astype(np.uint8)
    refined = crop(photograph, corners, 64).clip(0, 250)
    result = paste_back(photograph, corners, refined, refined + 3)
    middle = np.s_[150:350, 150:350]
    added = result[middle].astype(int) - photograph[middle]
    assert set(np.unique(added[photograph[middle] < 250])) == {3}


def test_a_strong_edit_replaces_it() -> None:
    corners = quad(512, 0, (256, 256))
    noise = np.random.default_rng(0).integers(-40, 40, (512, 512, 3))
    photograph = np.clip(waves(512, 512) + noise, 0, 255).astype(np.uint8)
    flat = np.full((64, 64, 3), 90, np.uint8)
    result = paste_back(photograph, corners, flat, flat + 60)
    np.testing.assert_array_equal(result[150:350, 150:350], 150)


def test_the_seam_is_gradual() -> None:
    """Across the border of a flat change, neighbouring pixels differ by little."""
    corners = quad(300, 30)
    photograph = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    flat = np.full((64, 64, 3), 100, np.uint8)
    result = paste_back(photograph, corners, flat, flat + 60).astype(int)
    assert result.max() == 160
    # The steepest slope of the fade, 1.5 times its mean, and a grey level of rounding.
    steepest = 60 * 1.5 / (0.12 * quad_side(corners)) + 1
    assert max(abs(np.diff(result, axis=a)).max() for a in (0, 1)) <= steepest


@pytest.mark.parametrize(
    ("corners", "edited", "message"),
    [
        (quad(50, 0, (900, 900)), (64, 64, 3), "outside"),
        (quad(50), (32, 32, 3), "crops of shapes"),
        (quad(50), (64, 32, 3), "crops of shapes"),
    ],
)
def test_what_does_not_fit_is_named(
    corners: np.ndarray, edited: tuple[int, int, int], message: str
) -> None:
    refined = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        paste_back(waves(), corners, refined, np.zeros(edited, np.uint8))


def test_smaller_crops_are_pasted_first() -> None:
    """A large crop keeps what a small one changed, except where it changes much itself."""
    photograph = waves()
    small = Crop(quad(120, 0, (200, 300)), np.full((32, 32, 3), 90), np.full((32, 32, 3), 150))
    refined = np.full((64, 64, 3), 90)
    edited = refined.copy()
    edited[:, 40:] = 200
    large = Crop(quad(400, 0), refined, edited)
    small, large = (Crop(c.quad, *(p.astype(np.uint8) for p in c[1:])) for c in (small, large))
    found = paste_all(photograph, [large, small])
    np.testing.assert_array_equal(found, paste_all(photograph, [small, large]))
    kept, replaced = (slice(280, 320), slice(180, 220)), (slice(280, 320), slice(340, 380))
    np.testing.assert_array_equal(found[kept], paste_back(photograph, *small)[kept])
    np.testing.assert_array_equal(found[replaced], paste_back(photograph, *large)[replaced])
    assert not np.array_equal(found[kept], photograph[kept])
