"""SAM: assignment, losses and steps against their formulas, edits, and exactness in a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks import tiny
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.parsers import bisenet
from dhr_batch.stages.networks.parsers.face_parts import CLASSES, INDEX
from dhr_batch.stages.refine import sam
from dhr_batch.stages.refine.base import Refinement
from dhr_batch.stages.refine.sam import ORDER, SIZES, SpatiallyAdaptive
from dhr_batch.stages.registry import InvalidInput

LEVELS = ("F4", "F6", "F8", "F10")


@pytest.fixture(scope="module")
def narrow() -> StyleGAN2:
    """A generator of 256 px with random weights and eight channels, in float64, with all levels."""
    net = StyleGAN2((8,) * 7)
    draw = torch.Generator().manual_seed(0)
    for name in net.weight_names():
        weight = net.weight(name)
        if name.endswith("modulation.bias"):
            weight.fill_(1.0)
        elif weight.ndim > 1:
            gain = weight.shape[1] ** -0.5 if name.startswith("mapping.") else 1.0
            weight.copy_(torch.randn(weight.shape, generator=draw) * gain)
    for i in range(6):
        net.weight(f"to_rgbs.{i}.weight").mul_(0.2)
    return net.double().eval()


class Halves:
    """A parser that finds hair on the left, skin on the right and a brow within the skin."""

    name = "halves"

    def parse(self, image: np.ndarray) -> np.ndarray:
        probs = np.zeros((len(CLASSES), *image.shape[:2]), np.float32)
        middle = image.shape[1] // 2
        probs[INDEX["hair"], :, :middle] = 1
        probs[INDEX["face"], :, middle:] = 0.6
        probs[INDEX["left_brow"], 10:20, -20:] = 0.7
        return probs


Build = Callable[..., SpatiallyAdaptive]


@pytest.fixture(scope="module")
def prior(narrow: StyleGAN2) -> sam.CodePrior:
    return sam.CodePrior(narrow)


@pytest.fixture
def build(narrow: StyleGAN2, prior: sam.CodePrior, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Maker of a refiner of the narrow generator with that parser. They share their prior."""
    monkeypatch.setattr(sam, "CodePrior", lambda net: prior)

    def make(**options: Any) -> SpatiallyAdaptive:
        def no_models(name: str) -> Any:
            raise AssertionError(f"asked for {name}")

        context = Context("cpu", "net", no_models)
        context._networks["generator", "net"] = narrow
        context._networks["perceptual", "tiny"] = tiny.perceptual(context).double()
        context._networks["parser", "halves"] = Halves()
        chosen = {"perceptual": "tiny", "parser": "halves", **options}
        stage = SpatiallyAdaptive(SpatiallyAdaptive.Options(**chosen))
        stage.setup(context)
        return stage

    return make


def photographs(net: Any, count: int) -> tuple[Tensor, Tensor]:
    """Images of 8 bits and codes that render something near them."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        w = net.map(torch.randn(count, 512, generator=draw).double())
        ws = net.broadcast(w) + 0.02 * torch.randn(
            count, net.num_ws, 512, generator=draw, dtype=torch.float64
        )
        noise = torch.randn(count, 3, 32, 32, generator=draw).double()
        images = net.synthesize(ws) + 0.3 * F.interpolate(noise, size=net.resolution)
    return images.clamp(-1, 1).add(1).mul(127.5).round().div(127.5).sub(1), ws


# ---------------------------------------------------------------------- assignment


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


def reference_lanczos(mask: np.ndarray, size: int) -> np.ndarray:
    """A Lanczos filter of three lobes, widened by the factor of reduction, in float64."""
    factor = len(mask) / size
    centre = (np.arange(size) + 0.5) * factor
    away = (np.arange(len(mask)) + 0.5 - centre[:, None]) / factor
    weights = np.where(np.abs(away) < 3, np.sinc(away) * np.sinc(away / 3), 0)
    weights /= weights.sum(1, keepdims=True)
    return (weights @ mask.astype(float) @ weights.T).clip(0, mask.max())


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


# ---------------------------------------------------------------------- losses and steps


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


# ---------------------------------------------------------------------- refinement and edits


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
