"""SAM: losses and steps against their formulas, edits, and exactness in a batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.refine import sam
from dhr_batch.stages.refine.base import Refinement
from dhr_batch.stages.refine.sam import SIZES, SpatiallyAdaptive
from dhr_batch.tests.stages.spatial import LEVELS, Build, photographs, reference_lanczos


def reference_prior(net: Any, rows: np.ndarray) -> float:
    def bent(w: np.ndarray) -> np.ndarray:
        return np.where(w > 0, w, 5 * w)

    z = torch.randn(5000, 512, generator=torch.Generator().manual_seed(0))
    w = net.map(z.double()).numpy()
    centre = bent(w.mean(0))
    covariance = np.cov(bent(w), rowvar=False, ddof=1) + 1e-8 * np.eye(512)
    away = [bent(row) - centre for row in rows]
    return float(sum(d @ np.linalg.solve(covariance, d) for d in away))


@torch.no_grad()
def test_the_prior_is_a_mahalanobis_distance(narrow: StyleGAN2, prior: sam.CodePrior) -> None:
    _, ws = photographs(narrow, 2)
    found = prior(ws[:, narrow.live_rows])
    wanted = [reference_prior(narrow, rows.numpy()) for rows in ws[:, narrow.live_rows]]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def reference_rate(step: int, steps: int) -> float:
    t = step / steps
    down = min(1, (1 - t) / 0.25)
    return 0.05 * min(1, t / 0.05) * (0.5 - 0.5 * math.cos(math.pi * down))


def reference_loss(
    stage: SpatiallyAdaptive, image: Tensor, x: Tensor, start: Tensor, code: Tensor, features: Any
) -> Tensor:
    """The loss of one image of 256 px, written from the formulas."""
    whole = stage.options.variant == "ganinverter"
    seen = image.clamp(-1, 1)
    total = ((image if whole else seen) - x).square().mean()
    total = total + 0.7 * stage.perceptual.distance(seen, stage.perceptual.features(x))[0]
    rows = (start + code)[0, stage.generator.live_rows]
    total = total + 1e-3 * sum((row - rows[0]).square().sum().sqrt() for row in rows[1:])
    away = torch.where(rows > 0, rows, 5 * rows) - stage.prior.mean
    total = total + 1e-8 * sum(d @ stage.prior.precision @ d for d in away)
    total = total + 5 * sum(f.square().mean() for f in features.values())
    if whole:
        total = total + 5 * code[0, stage.generator.live_rows].square().mean()
    return total


@pytest.mark.parametrize("variant", ["official", "ganinverter"])
def test_steps_equal_the_published_formulas(build: Build, variant: str) -> None:
    """Adam, its ramp, the taps and the loss, all written again for one image."""
    steps, stage = 5, build(variant=variant, steps=5, perceptual_weight=0.7)
    net = stage.generator
    images, ws = photographs(net, 1)
    masks = {
        n: torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(size)).double()
        for n, (size, _) in stage.places.items()
    }
    stage.masks = lambda *_: masks
    result = stage.refine(images, ws, torch.ones(1, 1, 256, 256))

    code = torch.zeros_like(ws)
    offsets = {n: torch.zeros(1, 8, s, s).double() for n, (s, _) in stage.places.items()}
    values = [code, *offsets.values()]
    first, second = ([torch.zeros_like(v) for v in values] for _ in range(2))
    for step in range(steps):
        for value in values:
            value.requires_grad_()
        where = "up" if variant == "ganinverter" else "out"
        taps = {(SIZES[n], where): lambda h, n=n: h + masks[n] * offsets[n] for n in stage.places}
        image = net.synthesize(ws + code, taps=taps)
        loss = reference_loss(stage, image, images, ws, code, offsets)
        grads = torch.autograd.grad(loss, values)
        with torch.no_grad():
            for i, (value, grad) in enumerate(zip(values, grads, strict=True)):
                first[i] = 0.9 * first[i] + 0.1 * grad
                second[i] = 0.999 * second[i] + 0.001 * grad**2
                m = first[i] / (1 - 0.9 ** (step + 1))
                s = second[i] / (1 - 0.999 ** (step + 1))
                value -= reference_rate(step, steps) * m / (s.sqrt() + 1e-8)
    moved = code.detach().abs().max()
    assert moved > 0.05
    assert (result.state["code"] - code).abs().max() < 1e-5 * moved
    for n in stage.places:
        wanted = masks[n] * offsets[n]
        found = result.state[n]
        assert found.dtype == torch.float16
        # Half precision has 11 bits.
        torch.testing.assert_close(found.double(), wanted.detach(), rtol=6e-4, atol=1e-6)
        assert result.state[f"mask.{n}"].dtype == torch.float32


@pytest.mark.parametrize("variant", ["official", "ganinverter"])
def test_large_pictures_are_compared_at_256_px(build: Build, variant: str) -> None:
    stage = build(variant=variant, perceptual_weight=0.7, row_weight=0, prior_weight=0)
    draw = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (1, 3, 512, 512), generator=draw).double() / 127.5 - 1
    image = torch.randn(1, 3, 512, 512, generator=draw).double()
    small, seen = sam.lanczos(images, 256), F.avg_pool2d(image, 2).clamp(-1, 1)
    pixel = image - images if variant == "ganinverter" else seen - small
    wanted = 0.7 * stage.perceptual.distance(seen, stage.perceptual.features(small))
    nothing = torch.zeros(1, stage.generator.num_ws, 512).double()
    found = stage._loss(images)(image, nothing, nothing, {})
    torch.testing.assert_close(found, wanted + pixel.square().mean())


def test_the_first_step_has_no_effect(build: Build) -> None:
    stage = build(steps=1)
    images, ws = photographs(stage.generator, 1)
    assert not stage.refine(images, ws, torch.ones(1, 1, 256, 256)).state["code"].any()


def test_photographs_are_shrunk_by_lanczos() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(60, 190, (1, 3, 64, 64))
    images = torch.from_numpy(levels).double() / 127.5 - 1
    small = sam.lanczos(images, 16)
    wanted = np.stack([reference_lanczos(channel, 16) for channel in levels[0]])
    # PIL rounds after each of the two directions.
    assert np.abs((small[0].numpy() + 1) * 127.5 - wanted).max() <= 1.01
    assert sam.lanczos(images, 64) is images


def refined(stage: SpatiallyAdaptive, images: Tensor, ws: Tensor) -> Refinement:
    return stage.refine(images, ws, torch.ones(len(images), 1, *images.shape[2:]))


@torch.no_grad()
def distance(stage: SpatiallyAdaptive, image: Tensor, images: Tensor) -> float:
    target = stage.perceptual.features(images)
    return float(stage.perceptual.distance(image, target) + (image - images).square().mean())


def test_the_picture_comes_closer_and_unassigned_features_stay(build: Build) -> None:
    stage = build(steps=6, rate=0.02)
    images, ws = photographs(stage.generator, 1)
    result = refined(stage, images, ws)
    with torch.no_grad():
        before = stage.generator.synthesize(ws)
        after = stage.render(ws, result, torch.ones(1, 1, 256, 256))
    assert distance(stage, after, images) < 0.95 * distance(stage, before, images)
    assert result.delta == {}
    assert result.feature is None
    assert any(result.state[n].any() for n in LEVELS)
    for n in LEVELS:
        outside = result.state[f"mask.{n}"] == 0
        assert not result.state[n].masked_select(outside).any()


def test_images_do_not_depend_on_batch_mates(build: Build) -> None:
    stage = build(steps=3)
    images, ws = photographs(stage.generator, 2)
    together = refined(stage, images, ws)
    for i in range(2):
        alone = refined(stage, images[i : i + 1], ws[i : i + 1])
        assert alone.state.keys() == together.state.keys()
        for name, value in alone.state.items():
            torch.testing.assert_close(
                together.state[name][i : i + 1], value, rtol=1e-3, atol=1e-6, msg=name
            )


@pytest.fixture
def edited(build: Build) -> tuple[SpatiallyAdaptive, Tensor, Tensor, Refinement]:
    """A refiner, the code of an image, two edits, and a refinement with masks of 0 and 1."""
    stage, draw = build(), torch.Generator().manual_seed(3)
    _, ws = photographs(stage.generator, 1)
    state = {"code": 0.1 * torch.randn(ws.shape, generator=draw)}
    for i, n in enumerate(LEVELS):
        size = SIZES[n]
        mask = torch.zeros(1, 1, size, size)
        mask[..., i * size // 4 : (i + 1) * size // 4, : size // 2] = 1
        state[n] = (mask * torch.randn(1, 8, size, size, generator=draw)).half()
        state[f"mask.{n}"] = mask
    moved = ws + state["code"] + torch.randn(2, 1, 512, generator=draw).double()
    return stage, ws, moved, Refinement(state=state)


@torch.no_grad()
def test_no_edit_is_the_refined_picture(edited: Any) -> None:
    stage, ws, _, result = edited
    masks = torch.ones(1, 1, 256, 256)
    plain = stage.render(ws, result, masks)
    codes = stage.refined_codes(ws, result)
    assert torch.equal(codes, ws + result.state["code"])
    found = stage.render_edit(ws, codes, result, masks)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-9)


@torch.no_grad()
def test_assigned_features_stay_and_others_follow_the_edit(edited: Any) -> None:
    """Every level keeps its features of the unedited pass where its mask is 1."""
    stage, ws, moved, result = edited
    net, seen = stage.generator, []
    synthesize = net.synthesize

    def recorded(codes: Tensor, delta: Any = None, taps: Any = None) -> Tensor:
        features: dict[Any, tuple[Tensor, Tensor]] = {}
        seen.append(features)

        def wrap(place: Any, tap: Any) -> Any:
            def call(x: Tensor) -> Tensor:
                features[place] = (x.clone(), tap(x).clone())
                return features[place][1]

            return call

        return synthesize(codes, delta, {p: wrap(p, tap) for p, tap in (taps or {}).items()})

    net.synthesize = recorded
    try:
        pictures = stage.render_edit(ws, moved, result, torch.ones(1, 1, 256, 256))
    finally:
        del net.synthesize
    before, after = seen
    assert (pictures - stage.render(ws, result, torch.ones(1, 1, 256, 256))).abs().max() > 0.05
    for n, place in stage.places.items():
        torch.testing.assert_close(before[place][1], before[place][0] + result.state[n].double())
        kept = result.state[f"mask.{n}"].bool().expand_as(after[place][0])
        unedited = before[place][1].expand_as(after[place][0])
        torch.testing.assert_close(after[place][1][kept], unedited[kept], rtol=0, atol=1e-12)
        torch.testing.assert_close(after[place][1][~kept], after[place][0][~kept], rtol=0, atol=0)
        assert (after[place][0] - before[place][0]).abs().max() > 1e-3


@torch.no_grad()
def test_an_edit_of_styles_is_rendered(edited: Any) -> None:
    stage, ws, _, result = edited
    masks = torch.ones(1, 1, 256, 256)
    offset = {"convs.5.style": torch.ones(1, 8).double()}
    codes = stage.refined_codes(ws, result)
    plain = stage.render_edit(ws, codes, result, masks)
    assert (stage.render_edit(ws, codes, result, masks, offset) - plain).abs().max() > 0.01
