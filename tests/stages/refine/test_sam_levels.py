"""SAM: the assignment of segments to levels, and masks, against their formulas."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.parsers import bisenet
from dhr_batch.stages.networks.parsers.face_parts import INDEX
from dhr_batch.stages.refine import sam
from dhr_batch.stages.refine.sam import ORDER, SIZES, SpatiallyAdaptive
from dhr_batch.stages.registry import InvalidInput
from dhr_batch.tests.stages.spatial import LEVELS, Build, photographs, reference_lanczos


def reference_levels(errors: dict[str, np.ndarray], parts: np.ndarray, limit: float) -> np.ndarray:
    levels = np.full(parts.shape, ORDER.index("F10"))
    for part in set(parts.ravel().tolist()):
        where = [tuple(p) for p in np.argwhere(parts == part)]
        for level in ("F10", "F8", "F6", "F4", "W+"):
            if sum(float(errors[level][p]) for p in where) / len(where) <= limit:
                for p in where:
                    levels[p] = ORDER.index(level)
    return levels


def test_a_segment_has_the_last_level_whose_mean_error_is_small() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        parts = rng.integers(0, 5, (12, 12)) * 3
        bias = rng.random((len(ORDER), 16))
        errors = {n: (bias[i][parts] + rng.random((12, 12)) / 9) for i, n in enumerate(ORDER)}
        errors = {n: e.astype(np.float32) for n, e in errors.items()}
        wanted = reference_levels(errors, parts, 0.5)
        np.testing.assert_array_equal(sam.assign(errors, parts, 0.5), wanted)
        seen |= set(wanted.ravel().tolist())
    assert seen == set(range(5))


def test_the_code_wins_whatever_the_levels_between_say() -> None:
    one = np.zeros((2, 2), int)
    errors = {n: np.full((2, 2), e) for n, e in zip(ORDER, (9, 9, 9, 9, 0.25), strict=True)}
    assert (sam.assign(errors, one, 0.25) == ORDER.index("W+")).all()
    # Without a level that passes, and without F10, the finest that exists is taken.
    del errors["F10"]
    assert (sam.assign(errors, one, 0.2) == ORDER.index("F8")).all()


@pytest.mark.parametrize(("variant", "hair"), [("official", []), ("ganinverter", [17])])
def test_parts_of_the_face_are_one_segment(variant: str, hair: list[int]) -> None:
    # The published code names the classes of the face by their numbers in BiSeNet.
    numbers = [1, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, *hair]
    probs = np.eye(19)[:, None, :]  # one pixel of each class, in the project's order
    parts = sam.segments(probs, (1, 19), sam.FORMS[variant].fused)[0]
    face = [INDEX[bisenet.ORDER[number]] for number in numbers]
    assert len(set(parts[face])) == 1
    assert len(set(parts)) == 19 - len(numbers) + 1
    assert (sam.segments(None, (3, 4), (0,)) == np.zeros((3, 4))).all()


def test_masks_are_resized_by_lanczos_and_clipped() -> None:
    mask = np.zeros((256, 256), bool)
    mask[40:150, 90:201] = True
    for size in SIZES.values():
        found = sam.soft_mask(mask, size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, reference_lanczos(mask, size), atol=2e-5)
    assert (sam.soft_mask(np.zeros((64, 64), bool), 16) == 0).all()
    assert (sam.soft_mask(np.ones((64, 64), bool), 16) == 1).all()


def test_measured_errors_are_the_perceptual_map_of_the_embedding(build: Build) -> None:
    stage = build(measured_thresholds=(0.1, 0.2, 0.4, 0.8))
    images, ws = photographs(stage.generator, 1)
    (maps,) = stage._measured(images, ws)
    with torch.no_grad():
        layers = stage.perceptual.maps(
            stage.generator.synthesize(ws).clamp(-1, 1), stage.perceptual.features(images)
        )
    total = sum(F.interpolate(m, size=(256, 256), mode="bilinear") for m in layers)[0, 0].numpy()
    for n, limit in zip(("W+", "F4", "F6", "F8"), (0.1, 0.2, 0.4, 0.8), strict=True):
        np.testing.assert_allclose(maps[n], total / limit, rtol=1e-5)
    assert (maps["F10"] == 0).all()


@pytest.mark.parametrize(
    ("error", "level"),
    [(0.1, "W+"), (0.11, "F4"), (0.2, "F4"), (0.3, "F6"), (0.7, "F8"), (0.9, "F10"), (9, "F10")],
)
def test_the_worse_the_code_the_finer_is_the_level(build: Build, error: float, level: str) -> None:
    stage = build(measured_thresholds=(0.1, 0.2, 0.4, 0.8))
    images, ws = photographs(stage.generator, 1)
    # A distance whose map of two cells adds up to the error everywhere.
    stage.perceptual = SimpleNamespace(
        features=lambda x: [],
        maps=lambda x, target: [torch.full((1, 1, 2, 2), error / 2 - 1e-9).double()] * 2,
    )
    masks = stage.masks(images, ws)
    assert {n: bool(m.all()) for n, m in masks.items()} == {n: n == level for n in LEVELS}
    assert level == "W+" or not any(m.any() for n, m in masks.items() if n != level)


def test_a_trained_predictor_assigns_the_segments(build: Build) -> None:
    stage = build(invertibility="measured")
    images, ws = photographs(stage.generator, 2)
    # Hair is bad in the code and good in F6; the face is bad in every space.
    bad, good = torch.ones(1, 1, 256, 256), torch.ones(1, 1, 256, 256)
    good[..., :128] = 0.2
    stage.predictor = lambda image: {n: good if n == "F6" else bad for n in ("W+", *LEVELS)}
    stage.options = stage.options.model_copy(update={"invertibility": "predictor"})
    masks = stage.masks(images, ws)
    assert list(masks) == list(LEVELS)
    left = torch.zeros(2, 1, 32, 32)
    left[..., :16] = 1
    assert (masks["F6"] - left).abs().max() < 0.1
    assert (masks["F6"][..., :14] > 0.98).all()
    assert (masks["F10"][..., :60] == 0).all()
    assert (masks["F10"][..., 70:] == 1).all()
    assert not masks["F4"].any()
    assert not masks["F8"].any()


def test_models_are_those_of_the_chosen_networks() -> None:
    def models(**options: Any) -> set[str]:
        return SpatiallyAdaptive(SpatiallyAdaptive.Options(**options)).models(aligned=True)

    assert "sam-invertibility" not in models()
    chosen = models(invertibility="predictor", parser="bisenet", perceptual="lpips_vgg")
    assert chosen == {"sam-invertibility", "bisenet-19", "lpips-vgg", "lpips-vgg-backbone"}


def test_levels_that_a_generator_lacks_are_left_out(build: Build) -> None:
    assert list(build().places) == ["F4", "F6", "F8", "F10"]
    assert build(variant="ganinverter").places == {
        "F4": (16, "up"),
        "F6": (32, "up"),
        "F10": (128, "up"),
    }
    # Behind features as large as the picture no image layer of StyleGAN2 follows.
    assert list(sam.places(StyleGAN2((8,) * 6), sam.FORMS["official"])) == ["F4", "F6", "F8"]
    small = MobileStyleGAN((8, 8), feature_block=0, num_ws=4)
    with pytest.raises(InvalidInput, match=r"generator of 16 px has no features of 16 px.*larger"):
        sam.places(small, sam.FORMS["official"])
