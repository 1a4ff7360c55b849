"""Code, mask and reconstruction against a truth that the test knows as well."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dhr_batch.stages.context import Context
from dhr_batch.stages.measure.standard import Standard
from dhr_batch.stages.measure.truth import (
    at_size,
    hide_occluder,
    latent_values,
    mask_values,
    truth_parts,
    visible_face,
)
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.record import Metric, Record, Truth

SIZE = 32


@pytest.fixture(scope="module")
def context() -> Context:
    return Context("cpu", "tiny", models=lambda name: Path())


@pytest.fixture(scope="module")
def generator(context: Context) -> Generator:
    return context.network("generator", "tiny")


@pytest.fixture(scope="module")
def truth(generator: Generator) -> Truth:
    """A face of 16 x 20 cells, of which the occluder hides the left quarter, and more beside it."""
    face, occluder = np.zeros((2, SIZE, SIZE), bool)
    face[8:24, 4:24] = True
    occluder[:, :9] = True
    clean = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    z = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))
    w = generator.map(z, 0.7)[0].numpy()
    return Truth(clean, face, occluder, True, z[0].numpy(), 0.7, w)


def test_a_mask_that_is_the_occluder_is_perfect(truth: Truth) -> None:
    values = mask_values(~truth.occluder, truth)
    assert values == {
        "occluded": 0.25,
        "mask_iou": 1,
        "mask_precision": 1,
        "mask_recall": 1,
        "mask_false": 0,
    }


def test_masks_are_compared_within_the_face(truth: Truth) -> None:
    """Out-of-domain: half of the occluder, as much beside it, and all that is no face."""
    mask = truth.face.copy()
    mask[8:16, 4:14] = False
    values = mask_values(mask, truth)
    assert values["mask_recall"] == 0.5
    assert values["mask_precision"] == 0.5
    assert values["mask_iou"] == pytest.approx(1 / 3)
    assert values["mask_false"] == pytest.approx(40 / 240)


def test_pixels_next_to_the_occluder_are_not_judged(truth: Truth) -> None:
    """Also those at its corners, which the blur of its edge reaches as well."""
    occluder = np.zeros((SIZE, SIZE), bool)
    occluder[12:16, 8:12] = True
    truth = replace(truth, occluder=occluder)
    expected = truth.face.copy()
    expected[11:17, 7:13] = False
    np.testing.assert_array_equal(visible_face(truth), expected)
    grey = np.full((SIZE, SIZE, 3), 90, np.uint8)
    shown = hide_occluder(grey, truth)
    np.testing.assert_array_equal(shown[11:17, 7:13], truth.clean[11:17, 7:13])
    shown[11:17, 7:13] = 90
    assert (shown == 90).all()


def test_a_mask_without_an_out_of_domain_part_finds_nothing(truth: Truth) -> None:
    values = mask_values(np.ones((SIZE, SIZE), bool), truth)
    assert values["mask_iou"] == values["mask_recall"] == values["mask_false"] == 0
    assert "mask_precision" not in values


def test_a_twin_has_nothing_to_find(truth: Truth) -> None:
    values = mask_values(~truth.occluder, replace(truth, occluded=False))
    assert values == {"occluded": 0, "mask_false": 0}


def test_the_code_is_compared_in_units_of_the_way_to_the_mean_face(
    truth: Truth, generator: Generator
) -> None:
    exact = np.tile(truth.latent, (generator.num_ws, 1))
    assert latent_values(exact, truth, generator) == {"latent_w": 0, "latent_w_plus": 0}
    mean = generator.w_mean.expand(generator.num_ws, -1).numpy()
    found = latent_values(mean, truth, generator)
    assert found == pytest.approx({"latent_w": 1, "latent_w_plus": 1})
    rows = generator.live_rows
    step = (mean[0] - truth.latent).astype(np.float32)
    apart = exact.copy()
    apart[rows[0]] += step
    found = latent_values(apart, truth, generator)
    assert found["latent_w"] == pytest.approx(1 / len(rows), rel=1e-4)
    assert found["latent_w_plus"] == pytest.approx(1 / math.sqrt(len(rows)), rel=1e-4)


def test_codes_of_another_space_are_not_compared(truth: Truth, generator: Generator) -> None:
    foreign = replace(truth, latent=np.roll(truth.latent, 1))
    assert latent_values(np.tile(truth.latent, (generator.num_ws, 1)), foreign, generator) == {}


def test_a_truth_is_made_smaller_never_larger(truth: Truth) -> None:
    assert at_size(truth, 64).clean.shape == (32, 32, 3)
    small = at_size(truth, 16)
    assert small.clean.shape == (16, 16, 3)
    assert small.face.sum() == truth.face.sum() / 4
    assert small.occluder.shape == (16, 16)


def rows(context: Context, record: Record) -> list[Metric]:
    options = {"perceptual": "tiny", "identity": "none", "landmarks": "none"}
    stage = Standard(Standard.Options(**options))
    stage.setup(context)
    (done,) = stage.run([record])
    assert done.failure is None, done.failure
    return [row for row in done.metrics if row.metric.startswith("truth_")]


def test_the_stage_compares_with_the_clean_face_beside_the_occluder(
    truth: Truth, context: Context, generator: Generator
) -> None:
    hidden = truth.clean.copy()
    hidden[truth.occluder] = 0
    darker = np.where(visible_face(truth)[..., None], truth.clean // 2, truth.clean)
    record = Record(
        "a.png",
        "a.png",
        truth=truth,
        image=np.zeros_like(truth.clean),
        inverted=darker,
        refined=hidden,
        mask=~truth.occluder,
        latent=np.tile(truth.latent, (generator.num_ws, 1)),
    )
    found = {(row.stage, row.metric): row.value for row in rows(context, record)}
    assert found["refined", "truth_psnr"] == math.inf
    assert found["inverted", "truth_psnr"] < 15
    distance = f"truth_{context.network('perceptual', 'tiny').name}"
    assert found["inverted", distance] > found["refined", distance] == 0
    assert found["inverted", "truth_mask_iou"] == 1
    assert found["inverted", "truth_latent_w"] == 0
    assert not any(metric == "truth_ssim" for _, metric in found)
    assert rows(context, replace(record, truth=None)) == []


def test_a_face_that_is_covered_entirely_has_no_reconstruction(truth: Truth) -> None:
    assert truth_parts(replace(truth, occluder=np.ones_like(truth.face))) == {}
    assert set(truth_parts(truth)) == {""}
