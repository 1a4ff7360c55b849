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


def compared(a, b, part=None) -> dict[str, float]:
    """The metrics of a picture in a part, which the names do not say."""
    x, y = (torch.from_numpy(np.stack([i])) for i in (a, b))
    parts = {"": part}
    weights = torch.from_numpy(metrics.weights_of(parts, a.shape[:2]))
    return metrics.pixel_metrics(metrics.pixel_values(x, y, 0, weights)[0].numpy(), parts)


def test_psnr_of_known_pairs():
    assert compared(grey(0), grey(255))["mse"] == pytest.approx(4)
    assert compared(grey(0), grey(255))["psnr"] == pytest.approx(0, abs=1e-12)
    assert compared(grey(100), grey(151))["mse"] == pytest.approx(0.16)
    assert compared(grey(100), grey(151))["psnr"] == pytest.approx(10 * math.log10(25))
    assert compared(grey(7), grey(7))["psnr"] == math.inf


def test_ganinverter_psnr_is_three_decibels_lower():
    found = compared(noise(0), noise(1))
    assert found["psnr"] - found["psnr_ganinverter"] == pytest.approx(3.0103, abs=1e-4)


def test_parts_average_to_the_whole():
    a, b = noise(0), noise(1)
    part = np.zeros((32, 32), bool)
    part[:8] = True
    inside, outside = compared(a, b, part)["mse"], compared(a, b, ~part)["mse"]
    assert compared(a, b)["mse"] == pytest.approx(0.25 * inside + 0.75 * outside)
    changed = a.copy()
    changed[:8] = 255 - changed[:8]
    assert compared(a, changed, ~part)["mse"] == 0
    assert compared(a, changed, part)["mse"] > 0


def test_pictures_are_compared_together_as_alone():
    source, images = noise(0, 176), [noise(1, 176), grey(9, 176), noise(0, 176)]
    mask = np.zeros((176, 176), bool)
    mask[:, 60:] = True
    parts = {"": None, "_in": mask, "_out": ~mask}
    weights = torch.from_numpy(metrics.weights_of(parts, (176, 176)))
    pictures = torch.from_numpy(np.stack(images))
    values = metrics.pixel_values(torch.from_numpy(source)[None], pictures, 1, weights).numpy()
    for image, row in zip(images, values, strict=True):
        found = metrics.pixel_metrics(row, parts)
        for suffix, part in parts.items():
            for name, value in compared(source, image, part).items():
                if name != "change":
                    assert found[name + suffix] == pytest.approx(value, rel=1e-12), name
        assert "change" not in found
        moved = np.abs(image.astype(float) - 9)[mask].mean() / 127.5
        assert found["change_in"] == pytest.approx(moved)


def test_ssim_equals_scikit_image():
    a = noise(0, 48)
    b = (0.7 * a + 0.3 * noise(1, 48)).astype(np.uint8)
    expected = structural_similarity(a, b, channel_axis=2, data_range=255)
    assert compared(a, b)["ssim"] == pytest.approx(expected, abs=1e-12)
    _, full = structural_similarity(a, b, channel_axis=2, data_range=255, full=True)
    part = np.zeros((48, 48), bool)
    part[10:30, 5:] = True
    inner = np.zeros_like(part)
    inner[3:-3, 3:-3] = part[3:-3, 3:-3]
    wanted = full.mean(2)[inner].mean()
    assert compared(a, b, part)["ssim"] == pytest.approx(wanted, abs=1e-12)
    border = np.zeros((48, 48), bool)
    border[0] = True
    assert "ssim" not in compared(a, b, border)


@pytest.mark.parametrize("size", [161, 200, 256, 333])
def test_ms_ssim_equals_pytorch_msssim(size):
    a, b = blurred(0, size)
    x, y = (torch.from_numpy(i.astype(np.float64)).permute(2, 0, 1)[None] for i in (a, b))
    # Its window is float32.
    expected = pytorch_msssim.ms_ssim(x, y, data_range=255).item()
    assert 0.3 < expected < 0.95
    assert compared(a, b)["ms_ssim"] == pytest.approx(expected, abs=2e-6)


def test_ms_ssim_of_known_pairs():
    a = noise(0, 176)
    assert compared(a, a)["ms_ssim"] == pytest.approx(1, abs=1e-12)
    # Flat pictures differ in luminance only, which the coarsest scale alone sees.
    x, y, c = 100, 200, (0.01 * 255) ** 2
    luminance = (2 * x * y + c) / (x**2 + y**2 + c)
    flat = compared(grey(x, 176), grey(y, 176))["ms_ssim"]
    assert flat == pytest.approx(luminance**0.1333, abs=1e-9)
    assert "ms_ssim" not in compared(a[:160, :160], a[:160, :160])


def test_ms_ssim_of_a_part_sees_that_part():
    a = noise(0, 256)
    b = a.copy()
    b[:, 128:] = 255 - b[:, 128:]
    left = torch.zeros(1, 256, 256, dtype=torch.float64)
    left[..., :96] = 1
    x, y = (metrics.levels(torch.from_numpy(np.stack([i]))) for i in (a, b))
    maps = metrics.Reference(x).ms_ssim_maps(y)
    # Windows of the coarsest scale reach 80 px to each side.
    only_fine = maps[:2] + [torch.ones_like(m) for m in maps[2:]]
    assert metrics.ms_ssim(only_fine, left).item() == pytest.approx(1)
    whole = metrics.ms_ssim(maps, torch.ones_like(left)).item()
    assert metrics.ms_ssim(maps, left).item() > 0.5 > whole
    edge = np.zeros((256, 256), bool)
    edge[:16] = True
    assert "ms_ssim" not in compared(a, b, edge)


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
