"""Motion between made pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dhr_batch.stages import motion
from dhr_batch.stages.motion import SIDE

SHIFT = 12


def texture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (SIDE, SIDE, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.clip((smooth - 127) * 4 + 127, 0, 255).astype(np.uint8)


def disc(x: int) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.hypot(rows - 128, columns - x) < 60


def scene(x: int) -> np.ndarray:
    """A textured disc at x before a textured background."""
    person = np.roll(texture(1), x - 128, 1)
    return np.where(disc(x)[..., None], person, texture(2))


def test_the_person_moves_and_the_background_does_not() -> None:
    found = motion.motion(scene(128), scene(128 + SHIFT), disc(128))
    inside = found.person[disc(128 + SHIFT)]
    np.testing.assert_allclose(np.median(inside, 0), [-SHIFT, 0], atol=0.5)
    after = disc(128 + SHIFT)
    assert (found.after & after).sum() / (found.after | after).sum() > 0.95
    # The background stands still; the faded flow is 0 far away in any case.
    assert np.abs(np.median(found.whole[:40], (0, 1))).max() < 0.5
    away = cv2.distanceTransform((~(disc(128) | after)).astype(np.uint8), cv2.DIST_L2, 5)
    assert not found.faded[away > 40].any()


def test_the_flow_of_the_background_fades_from_2_to_24_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everywhere = np.broadcast_to(np.float32([-10, 0]), (SIDE, SIDE, 2)).copy()
    monkeypatch.setattr(motion, "optical_flow", lambda before, after: everywhere)
    person = np.zeros((SIDE, SIDE), bool)
    person[150:] = True
    found = motion.motion(scene(128), scene(128), person)
    rows = {distance: found.faded[150 - distance, :, 0] for distance in (-50, 1, 2, 13, 24, 80)}
    expected = {-50: -10, 1: -10, 2: -10, 13: -5, 24: 0, 80: 0}
    for distance, row in rows.items():
        np.testing.assert_allclose(row, expected[distance], atol=1e-4)
    np.testing.assert_allclose(found.whole[..., 0], -10, atol=1e-4)


@pytest.mark.parametrize("person", [disc(128), np.zeros((SIDE, SIDE), bool)])
def test_what_does_not_move_has_a_flow_of_exactly_0(person: np.ndarray) -> None:
    found = motion.motion(scene(128), scene(128), person)
    for flow in (found.whole, found.person, found.faded):
        assert flow.dtype == np.float32
        assert not flow.any()
