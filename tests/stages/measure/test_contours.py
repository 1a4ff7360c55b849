"""Contour metrics of made pictures whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from dhr_batch.stages.measure.contours import background, background_psnr, contour_metrics, ghost
from dhr_batch.stages.motion import SIDE, Motion


def square(left: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[60:180, left : left + 80] = True
    return mask


def picture(person: np.ndarray, level: int = 200, ground: int = 100) -> np.ndarray:
    grey = np.where(person, level, ground).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


BEFORE, AFTER = square(60), square(100)


def test_a_contour_that_is_fully_there_has_a_ghost_of_1() -> None:
    refined = picture(BEFORE)
    assert ghost(refined, refined, BEFORE, AFTER) == pytest.approx(1)


def test_a_flat_picture_has_no_ghost() -> None:
    assert ghost(picture(BEFORE), picture(BEFORE & False), BEFORE, AFTER) == pytest.approx(0)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_faint_contour_has_its_share(share: float) -> None:
    faint = picture(BEFORE, level=round(100 + 100 * share))
    assert ghost(picture(BEFORE), faint, BEFORE, AFTER) == pytest.approx(share)


def test_a_soft_contour_counts_by_its_difference_over_4_pixels() -> None:
    ramp = np.clip(100 + 10 * (np.arange(SIDE) - 50), 0, 255).astype(np.uint8)
    soft = np.broadcast_to(ramp[:, None], (SIDE, SIDE, 3))
    right = np.arange(SIDE) >= 60
    before, after = (np.broadcast_to(m, (SIDE, SIDE)) for m in (right, np.roll(right, 40)))
    found = ghost(picture(before), soft, before, after)
    assert found == pytest.approx(0.4)


def test_a_turned_contour_is_negative() -> None:
    assert ghost(picture(BEFORE), picture(BEFORE, 100, 200), BEFORE, AFTER) == pytest.approx(-1)


def test_a_contour_that_has_not_moved_has_no_value() -> None:
    assert ghost(picture(BEFORE), picture(BEFORE), BEFORE, square(62)) is None


@pytest.mark.parametrize(("rows", "said"), [(16, False), (40, True)])
def test_a_few_points_that_have_moved_have_no_value(rows: int, said: bool) -> None:
    before = np.broadcast_to(np.arange(SIDE) >= 60, (SIDE, SIDE))
    after = before.copy()
    after[100 : 100 + rows, :100] = False
    found = ghost(picture(before), picture(before), before, after)
    assert found == (pytest.approx(1) if said else None)


def test_the_background_is_away_from_both_heads() -> None:
    beyond = background(BEFORE, AFTER)
    assert not (beyond & (BEFORE | AFTER)).any()
    assert not beyond[120, 60 - 12]
    assert beyond[120, 60 - 14]
    assert beyond[120, 180 + 14]


def test_the_background_is_compared_in_decibels() -> None:
    beyond = background(BEFORE, AFTER)
    # The person differs by 200 levels, the background by 5.
    one, other = picture(BEFORE, 255, 100), picture(BEFORE, 55, 105)
    expected = 10 * np.log10(255**2 / 25)
    assert background_psnr(one, other, beyond) == pytest.approx(expected)
    assert background_psnr(one, one, beyond) == pytest.approx(10 * np.log10(255**2 * 12))
    few = np.zeros(SIDE * SIDE, bool)
    for pixels, known in ((300, False), (350, True)):
        few[:pixels] = True
        found = background_psnr(one, other, few.reshape(SIDE, SIDE))
        assert (found is not None) == known


def test_metrics_of_an_edit_by_name() -> None:
    still = np.zeros((SIDE, SIDE, 2), np.float32)
    moved = Motion(still, still, still, BEFORE, AFTER.astype(np.float32))
    refined, edited = picture(BEFORE, ground=104), picture(AFTER, ground=104)
    large = np.repeat(np.repeat(edited, 2, 0), 2, 1)
    found = contour_metrics(
        large, np.repeat(np.repeat(refined, 2, 0), 2, 1), picture(BEFORE), moved
    )
    assert found["background_psnr_refined"] == pytest.approx(10 * np.log10(255**2 * 12))
    assert found["background_psnr"] == pytest.approx(10 * np.log10(255**2 / 16))
    # The left side has moved out of the new person, and nothing is left there.
    assert abs(found["ghost"]) < 0.1
    assert "background_psnr" not in contour_metrics(edited, refined, None, moved)
