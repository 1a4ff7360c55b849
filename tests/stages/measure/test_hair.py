"""Scores of hair on a drawn face whose parse is known."""

from __future__ import annotations

import numpy as np
import pytest

from dhr_batch.stages.measure import hair
from dhr_batch.stages.measure.hair import Hair
from dhr_batch.stages.networks.faces.identity import Portrait
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX


def landmarks(side: int) -> np.ndarray:
    """Eyes 64 px apart at a height of 96, the base of the nose 32 and the chin 96 px below."""
    points = np.zeros((68, 2))
    points[36:42], points[42:48], points[33], points[8] = (
        (96, 96),
        (160, 96),
        (128, 128),
        (128, 192),
    )
    return points * side / 256


def picture(side: int, hair_grey: int, beard_grey: int) -> np.ndarray:
    grey = np.full((256, 256, 3), 200, np.uint8)
    grey[:, :40] = hair_grey
    grey[131:174, 64:192] = beard_grey
    return np.repeat(np.repeat(grey, side // 256, 0), side // 256, 1)


@pytest.fixture(autouse=True)
def parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hair left of x = 40 down to y = 160, skin from there to x = 192."""
    labels = np.full((256, 256), INDEX["background"])
    labels[:160, :40] = INDEX["hair"]
    labels[60:200, 40:192] = INDEX["face"]
    probs = (labels == np.arange(len(CLASSES))[:, None, None]).astype(np.float32)
    monkeypatch.setattr(hair, "parse_face", lambda image, points: probs)


@pytest.mark.parametrize("side", [256, 512])
def test_known_scores(side: int) -> None:
    found = Hair(None).score(Portrait(picture(side, 119, 50), landmarks(side)))  # type: ignore[arg-type]
    assert found is not None
    # sRGB 119 is the grey of lightness 50.
    assert found["hair_brightness"] == pytest.approx(50, abs=0.3)
    assert found["hair_length"] == pytest.approx(40 * 63 / 64**2)
    same = Hair(None).score(Portrait(picture(side, 119, 200), landmarks(side)))  # type: ignore[arg-type]
    assert same is not None
    assert same["stubble"] == 0
    assert found["stubble"] == pytest.approx(80.6 - 20.8, abs=1)


def test_what_is_not_there_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = np.zeros((len(CLASSES), 256, 256), np.float32)
    monkeypatch.setattr(hair, "parse_face", lambda image, points: nothing)
    assert Hair(None).score(Portrait(picture(256, 1, 1), landmarks(256))) == {"hair_length": 0}  # type: ignore[arg-type]
    assert Hair(None).score(Portrait(picture(256, 1, 1))) is None  # type: ignore[arg-type]
