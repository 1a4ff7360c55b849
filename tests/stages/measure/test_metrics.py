"""Metrics against analytic values and the libraries' own functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_msssim
import torch
from skimage.metrics import structural_similarity

from dhr_batch.stages.measure import metrics
from dhr_batch.tests.stages.pictures import blurred, grey, noise


def test_psnr_of_known_pairs():
    assert metrics.mse(grey(0), grey(255)) == pytest.approx(4)
    assert metrics.psnr(grey(0), grey(255)) == pytest.approx(0, abs=1e-12)
    assert metrics.mse(grey(100), grey(151)) == pytest.approx(0.16)
    assert metrics.psnr(grey(100), grey(151)) == pytest.approx(10 * math.log10(25))
    assert metrics.psnr(grey(7), grey(7)) == math.inf


def test_ganinverter_psnr_is_three_decibels_lower():
    a, b = noise(0), noise(1)
    difference = metrics.psnr(a, b) - metrics.psnr_ganinverter(a, b)
    assert difference == pytest.approx(3.0103, abs=1e-4)


def test_parts_average_to_the_whole():
    a, b = noise(0), noise(1)
    part = np.zeros((32, 32), bool)
    part[:8] = True
    inside, outside = metrics.mse(a, b, part), metrics.mse(a, b, ~part)
    assert metrics.mse(a, b) == pytest.approx(0.25 * inside + 0.75 * outside)
    changed = a.copy()
    changed[:8] = 255 - changed[:8]
    assert metrics.mse(a, changed, ~part) == 0
    assert metrics.mse(a, changed, part) > 0


def test_ssim_equals_scikit_image():
    a = noise(0, 48)
    b = (0.7 * a + 0.3 * noise(1, 48)).astype(np.uint8)
    expected = structural_similarity(a, b, channel_axis=2, data_range=255)
    similarity = metrics.ssim_map(a, b)
    assert metrics.ssim(similarity) == pytest.approx(expected, abs=1e-12)
    assert metrics.ssim(similarity, np.ones((48, 48), bool)) == pytest.approx(expected, abs=1e-12)
    border = np.zeros((48, 48), bool)
    border[0] = True
    assert math.isnan(metrics.ssim(similarity, border))


@pytest.mark.parametrize("size", [161, 200, 256, 333])
def test_ms_ssim_equals_pytorch_msssim(size):
    a, b = blurred(0, size)
    x, y = (torch.from_numpy(i.astype(np.float64)).permute(2, 0, 1)[None] for i in (a, b))
    # Its window is float32.
    expected = pytorch_msssim.ms_ssim(x, y, data_range=255).item()
    assert 0.3 < expected < 0.95
    maps = metrics.ms_ssim_maps(a, b)
    assert metrics.ms_ssim(maps) == pytest.approx(expected, abs=2e-6)
    everything = np.ones((size, size), bool)
    assert metrics.ms_ssim(maps, everything) == pytest.approx(metrics.ms_ssim(maps), abs=1e-12)


def test_ms_ssim_of_known_pairs():
    a = noise(0, 176)
    assert metrics.ms_ssim(metrics.ms_ssim_maps(a, a)) == pytest.approx(1, abs=1e-12)
    # Flat pictures differ in luminance only, which the coarsest scale alone sees.
    x, y, c = 100, 200, (0.01 * 255) ** 2
    luminance = (2 * x * y + c) / (x**2 + y**2 + c)
    flat = metrics.ms_ssim(metrics.ms_ssim_maps(grey(x, 176), grey(y, 176)))
    assert flat == pytest.approx(luminance**0.1333, abs=1e-9)
    assert math.isnan(metrics.ms_ssim(metrics.ms_ssim_maps(a[:160, :160], a[:160, :160])))


def test_ms_ssim_of_a_part_sees_that_part():
    a = noise(0, 256)
    b = a.copy()
    b[:, 128:] = 255 - b[:, 128:]
    left = np.zeros((256, 256), bool)
    left[:, :96] = True
    maps = metrics.ms_ssim_maps(a, b)
    # Windows of the coarsest scale reach 80 px to each side.
    assert metrics.ms_ssim(maps[:2] + [np.ones_like(m) for m in maps[2:]], left) == pytest.approx(1)
    assert metrics.ms_ssim(maps, left) > 0.5 > metrics.ms_ssim(maps)
    edge = np.zeros((256, 256), bool)
    edge[:16] = True
    assert math.isnan(metrics.ms_ssim(maps, edge))


def test_perceptual_parts():
    maps = [torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 4, 4)]
    maps[1][:, :, :2] = 3
    top = torch.zeros(2, 1, 32, 32)
    top[:, :, :16] = 1
    assert metrics.perceptual_distance(maps).tolist() == [2.5, 2.5]
    assert metrics.perceptual_distance(maps, torch.ones(2, 1, 32, 32)).tolist() == [2.5, 2.5]
    assert metrics.perceptual_distance(maps, top).tolist() == [4, 4]
    assert metrics.perceptual_distance(maps, 1 - top).tolist() == [1, 1]


def test_a_part_of_a_few_pixels_has_no_rows():
    mask = np.ones((32, 32), bool)
    assert set(metrics.parts_of(mask)) == {"", "_in"}
    assert set(metrics.parts_of(~mask)) == {"", "_out"}
    mask[0, :3] = False
    assert set(metrics.parts_of(mask)) == {"", "_in"}
    mask[:4] = False
    assert set(metrics.parts_of(mask)) == {"", "_in", "_out"}


def test_shrink_keeps_small_pictures_and_majorities():
    assert metrics.shrink(grey(9, 16), 32).shape == (16, 16, 3)
    assert metrics.shrink(grey(9, 64), 32).tolist() == grey(9, 32).tolist()
    mask = np.zeros((4, 4), bool)
    mask[0, :3] = mask[1, 0] = True
    assert metrics.shrink_mask(mask, 2).tolist() == [[True, False], [False, False]]
