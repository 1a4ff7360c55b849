"""Embedding: what holds for any generator, shown on the random one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from dhr_batch.stages.context import Context
from dhr_batch.stages.device import mixed_precision
from dhr_batch.stages.embed.optimise import (
    FitSettings,
    OptimiseW,
    OptimiseWPlus,
    face_region,
    optimise,
    ramp,
    spread,
    whitening,
)


@pytest.fixture
def context() -> Context:
    def no_models(name):
        raise AssertionError(f"asked for {name}")

    return Context("cpu", "tiny", no_models)


def targets(context: Context, count: int) -> torch.Tensor:
    net = context.network("generator", "tiny")
    z = torch.randn(count, 512, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return net.synthesize(net.broadcast(net.map(z)))


def mse(context: Context, ws: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (
            (context.network("generator", "tiny").synthesize(ws) - images).square().mean((1, 2, 3))
        )


@pytest.mark.parametrize("embedder", [OptimiseW, OptimiseWPlus])
def test_more_steps_come_closer(context, embedder):
    images = targets(context, 2)
    errors = []
    for steps in (0, 80):
        stage = embedder(embedder.Options(steps=steps, perceptual="tiny"))
        stage.setup(context)
        errors.append(mse(context, stage.embed(images), images))
    assert (errors[1] < 0.8 * errors[0]).all()


@pytest.mark.parametrize("space", ["w", "w+"])
def test_an_image_does_not_depend_on_its_batch_mates(context, space):
    net = context.network("generator", "tiny").double()
    perceptual = context.network("perceptual", "tiny").double()
    images = _double_targets(net)
    start = net.w_mean.expand(3, -1)
    settings = FitSettings(space, 20, 0.05, pixel_weight=1.0, pull=0.01, face_weight=1.0)
    batch = optimise(net, perceptual, images, start, settings)
    for i in range(3):
        one = slice(i, i + 1)
        single = optimise(net, perceptual, images[one], start[one], settings)
        assert (batch[one] - single).abs().max() < 1e-6


def _double_targets(net) -> torch.Tensor:
    z = torch.randn(3, 512, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        return net.synthesize(net.broadcast(net.map(z)))


def test_rows_that_do_not_reach_the_image_are_the_mean_of_those_that_do(context):
    net = context.network("generator", "tiny")
    perceptual = context.network("perceptual", "tiny")
    settings = FitSettings("w+", steps=2, rate=0.05, pixel_weight=1.0)
    ws = optimise(net, perceptual, targets(context, 1), net.w_mean[None], settings)
    dead = [row for row in range(net.num_ws) if row not in net.live_rows]
    assert dead
    for row in dead:
        torch.testing.assert_close(ws[:, row], ws[:, net.live_rows].mean(1))


def test_the_face_region_is_the_middle_of_an_ffhq_crop():
    image = torch.arange(256 * 256.0).reshape(1, 1, 256, 256).expand(1, 3, 256, 256)
    face = face_region(image)
    assert face.shape == (1, 3, 128, 128)
    assert (face[0, 0, 0, 0], face[0, 0, -1, -1]) == (72 * 256 + 64, 199 * 256 + 191)
    assert face_region(image[..., ::8, ::8]).shape == (1, 3, 32, 32)


class OneColour:
    """A generator whose images have one colour, the first three numbers of the code."""

    num_ws, live_rows = 1, (0,)

    def broadcast(self, w):
        return w[:, None]

    def synthesize(self, ws):
        return ws[:, 0, :3, None, None].expand(-1, 3, 64, 64)


class Pixels:
    """A perceptual distance that is the mean squared error."""

    def features(self, x):
        return x

    def distance(self, x, features):
        return (x - features).square().mean((1, 2, 3))


def test_the_face_weight_counts_the_face_more_than_the_rest():
    image = torch.full((1, 3, 64, 64), -0.5)
    face_region(image).fill_(0.5)
    share = 32 * 32 / 64**2
    for weight in (0.0, 1.0, 9.0):
        settings = FitSettings("w", 200, 0.1, pixel_weight=0.0, face_weight=weight)
        ws = optimise(OneColour(), Pixels(), image, torch.zeros(1, 512), settings)
        expected = (0.5 * (share + weight) - 0.5 * (1 - share)) / (1 + weight)
        assert ws[0, 0, :3] == pytest.approx([expected] * 3, abs=0.01)


def test_the_schedule_starts_at_once_and_ends_near_zero():
    rates = [ramp(i, 100, 0.05, 0.25) for i in range(100)]
    assert 0 < rates[0] <= 0.2
    assert max(rates) == 1.0
    assert rates[-1] < 0.01
    assert all(a >= b for a, b in pairwise(rates[50:]))


def test_the_rate_falls_over_the_share_of_the_steps_that_is_set(context, monkeypatch):
    shares = []
    monkeypatch.setattr(
        "dhr_batch.stages.embed.optimise.ramp", lambda *args: shares.append(args[3]) or ramp(*args)
    )
    stage = OptimiseW(OptimiseW.Options(steps=2, perceptual="tiny", decay=0.25))
    stage.setup(context)
    stage.embed(targets(context, 1))
    assert shares == [0.25, 0.25]


def test_whitened_codes_have_unit_covariance(context):
    net = context.network("generator", "tiny")
    basis = whitening(net)
    z = torch.randn(8192, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        codes = net.map(z) - net.w_mean
    torch.testing.assert_close(basis @ basis.T, codes.T @ codes / len(codes), atol=1e-4, rtol=1e-3)


def test_steps_of_partly_whitened_codes_have_the_power_of_the_deviations(context):
    net = context.network("generator", "tiny")
    whole, unit = (whitening(net, power).norm(dim=0) for power in (1.0, 0.0))
    torch.testing.assert_close(whitening(net, 0.5).norm(dim=0), (whole * unit).sqrt())
    assert whole.max() > 3 * unit.max() > 30 * whole.min()


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_a_basis_serves_every_row_of_the_code(context, power):
    net, images = context.network("generator", "tiny"), targets(context, 2)
    stage = OptimiseWPlus(OptimiseWPlus.Options(steps=20, perceptual="tiny", whitening=power))
    stage.setup(context)
    rows = stage.embed(images)[:, net.live_rows]
    assert rows.shape == (2, len(net.live_rows), 512)
    assert (rows - rows.mean(1, keepdim=True)).square().mean().sqrt() > 0.05 * spread(net)


class Uneven:
    """A generator whose W has standard deviations from 1 down to 1e-4."""

    w_mean = torch.zeros(512)

    def map(self, z):
        return z * torch.logspace(0, -4, 512)


def test_weak_axes_are_whitened_like_strong_ones():
    """In float32, their variances would be smaller than rounding errors."""
    z = torch.randn(8192, 512, generator=torch.Generator().manual_seed(1))
    codes = torch.linalg.solve(whitening(Uneven()).double(), Uneven().map(z).double().T)
    assert 0.7 < codes.square().mean(1).min() < codes.square().mean(1).max() < 1.4


def test_codes_along_axes_are_not_rounded_to_bfloat16(context):
    net, images = context.network("generator", "tiny"), targets(context, 1)
    perceptual = context.network("perceptual", "tiny")
    settings = FitSettings("w", 2, 0.05, pixel_weight=1.0)
    basis, start = torch.linalg.qr(torch.randn(512, 512))[0], torch.zeros(1, 512)
    with mixed_precision("cpu", "bf16"):
        codes = optimise(net, perceptual, images, start, settings, basis)
    assert (codes != codes.bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1)])
def test_shares_of_gradients_are_below_one(betas):
    with pytest.raises(ValidationError, match="betas"):
        OptimiseWPlus.Options(betas=betas)


def test_a_strong_prior_keeps_the_code_at_the_mean(context):
    net = context.network("generator", "tiny")
    images = targets(context, 2)
    distances = []
    for prior in (1e-6, 0.1, 1e3):
        stage = OptimiseW(OptimiseW.Options(steps=20, perceptual="tiny", prior=prior))
        stage.setup(context)
        codes = stage.embed(images)[:, 0]
        distances.append(float((codes - net.w_mean).norm(dim=1).mean()))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.2 * distances[0]
