from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dhr_batch.fitting.thresholds import (
    GROUPS,
    SuperpixelErrors,
    choose,
    class_groups,
    main,
    measure,
)
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.parsers.face_parts import INDEX
from dhr_batch.stages.record import Record
from dhr_batch.stages.segment import DomainSpecific
from dhr_batch.stages.tensors import images_to_tensor
from dhr_batch.tests.stages.squares import Squares


def sample(errors: np.ndarray, group: int) -> SuperpixelErrors:
    return SuperpixelErrors(errors, np.full(len(errors), group), np.full(len(errors), 10))


def test_a_threshold_keeps_the_share_of_clean_pixels_it_was_asked_for() -> None:
    clean = [sample(np.linspace(0.1, 0.5, 100) * (g + 1), g) for g in range(3)]
    occluded = [sample(np.linspace(0.4, 0.6, 50) * (g + 1), g) for g in range(3)]
    rows = choose(clean, occluded, 0.9)
    assert [r.group for r in rows] == list(GROUPS)
    for g, row in enumerate(rows):
        assert row.threshold == pytest.approx(0.46 * (g + 1), abs=0.005 * (g + 1))
        assert row.clean_in == 0.9
        assert row.occluded_out == pytest.approx(0.7, abs=0.03)


def test_vanished_superpixels_do_not_count() -> None:
    clean = [sample(np.array([0.1] * 9 + [np.nan]), g) for g in range(3)]
    assert [r.clean_pixels for r in choose(clean, [], 0.9)] == [90] * 3


def test_group_without_pixels_is_named() -> None:
    with pytest.raises(CommandError, match="parts"):
        choose([sample(np.ones(3), 0)], [], 0.9)


def test_class_groups() -> None:
    groups = class_groups()
    assert groups[INDEX["face"]] == 0
    assert groups[INDEX["nose"]] == groups[INDEX["left_ear"]] == 1
    assert groups[INDEX["hair"]] == groups[INDEX["glasses"]] == 2
    assert groups[INDEX["background"]] == groups[INDEX["hat"]] == -1


class FaceParser:
    def parse(self, image: np.ndarray) -> np.ndarray:
        probs = np.zeros((19, *image.shape[:2]), np.float32)
        probs[INDEX["face"]] = 1
        return probs


class Brighter:
    """A generator whose every render is the picture and 1, not clamped."""

    live_rows = (0,)

    def __init__(self, image: np.ndarray) -> None:
        self.render = images_to_tensor([image], "cpu") + 1

    def broadcast(self, w: torch.Tensor) -> torch.Tensor:
        return w[:, None]

    def synthesize(self, ws: torch.Tensor) -> torch.Tensor:
        return self.render


def test_errors_are_those_of_the_segmentation() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    context = Context("cpu", "brighter", models=lambda name: Path(name))
    context._networks |= {
        ("parser", "face"): FaceParser(),
        ("perceptual", "squares"): Squares(0.5),
        ("generator", "brighter"): Brighter(image),
    }
    record = Record("a", "", image=image, inverted=image, latent=np.zeros((1, 512), np.float32))
    for layers, error in ((1, 1.0), (2, 1.5), (None, 1.5)):
        options = {"source": "mean_row", "error_layers": layers, "segments": 16}
        stage = DomainSpecific(
            DomainSpecific.Options(parser="face", perceptual="squares", **options)
        )
        stage.setup(context)
        ((clean, _),) = measure(stage, [record], 0)
        there = clean.sizes > 0
        np.testing.assert_allclose(clean.errors[there], error, atol=1e-5)
        assert set(clean.groups[there]) == {0}


def test_an_occluded_copy_is_held_against_its_portraits_inversion() -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    context = Context("cpu", "none", models=lambda name: Path(name))
    context._networks |= {
        ("parser", "face"): FaceParser(),
        ("perceptual", "squares"): Squares(0.0),
        ("generator", "none"): None,
    }
    stage = DomainSpecific(DomainSpecific.Options(parser="face", perceptual="squares", segments=16))
    stage.setup(context)
    ((clean, copies),) = measure(stage, [Record("a", "", image=image, inverted=image)], 4)
    assert np.nanmax(clean.errors) == 0
    assert len(copies) == 4
    for copy in copies:
        covered = (copy.groups == 0) & (copy.sizes > 0)
        assert covered.any()
        assert (copy.errors[covered] > 0).all()


def test_a_parser_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--images", str(tmp_path), "--parser", "none"])
    assert result.exit_code == 2
    assert "--parser: thresholds are for parts of a face" in result.output
