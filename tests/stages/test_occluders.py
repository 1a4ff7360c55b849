"""Occluders: of the size asked for, of known masks, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from dhr_batch.stages.occluders import KINDS, occlude

SIZE = 128
Y, X = np.mgrid[:SIZE, :SIZE]
FACE = ((X - 64) / 38) ** 2 + ((Y - 70) / 48) ** 2 < 1
COLOUR = np.array([200, 150, 120])
PICTURE = np.where(FACE[..., None], COLOUR, 90).astype(np.uint8)


def draw(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_asked_for_is_hidden_and_nothing_else_changes(kind: str) -> None:
    for seed in range(12):
        for share in (0.05, 0.2, 0.4):
            made = occlude(draw(seed), PICTURE, FACE, share, kind)
            # A step of an edge by one pixel is a few hundredths of a small face.
            assert made.mask[FACE].mean() == pytest.approx(share, abs=0.025)
            beyond = ~ndimage.binary_dilation(made.mask, np.ones((3, 3)))
            np.testing.assert_array_equal(made.image[beyond], PICTURE[beyond])
            assert made.image[made.mask].std(0).max() > 3
            assert made.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_an_edge_is_a_mixture_with_what_lies_behind(kind: str) -> None:
    """Over black and over grey: what of the difference is left is what shows through."""
    black, grey = np.zeros_like(PICTURE), np.full_like(PICTURE, 180)
    judged = 0
    for seed in range(8):
        one, two = (occlude(draw(seed), picture, FACE, 0.3, kind) for picture in (black, grey))
        shows = two.image.astype(int) - one.image
        inner, touched = (
            change(one.mask, np.ones((3, 3)), border_value=border)
            for change, border in ((ndimage.binary_erosion, 1), (ndimage.binary_dilation, 0))
        )
        if shows[inner].any():
            continue  # It has the colour of the face.
        judged += 1
        edge = touched & ~inner
        assert shows[edge].min() >= 19
        assert shows[edge].max() <= 161
        assert (shows[~touched] == 180).all()
    assert judged


def test_a_seed_makes_one_picture() -> None:
    for kind in KINDS:
        one, same, other = (occlude(draw(s), PICTURE, FACE, 0.3, kind) for s in (1, 1, 2))
        np.testing.assert_array_equal(one.image, same.image)
        assert (one.image != other.image).any()


def test_what_is_brighter_than_white_is_white() -> None:
    """Textures around the colour of a white face; a byte that overflows would be nearly black."""
    white = np.full_like(PICTURE, 255)
    for seed in range(8):
        made = occlude(draw(seed), white, FACE, 0.3, "mask")
        if made.image[made.mask].mean() > 200:
            assert (made.image[made.mask] < 30).mean() < 0.02
            break
    else:
        pytest.fail("none of these seeds takes the colour of the face")


def test_half_of_them_have_the_colour_of_the_face() -> None:
    own = 0
    for seed in range(60):
        made = occlude(draw(seed), PICTURE, FACE, 0.3, KINDS[seed % 4])
        own += np.abs(made.image[made.mask].mean(0) - COLOUR).max() < 12
    assert 20 <= own <= 40


def test_a_picture_without_a_face_is_refused() -> None:
    with pytest.raises(ValueError, match="no part of it can be covered"):
        occlude(draw(0), PICTURE, np.zeros_like(FACE), 0.3, "hand")
