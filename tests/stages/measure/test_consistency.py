"""Latent editing consistency of linear encoders and generators, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhr_batch.stages.measure.consistency import edit_consistency, published_mean

ROWS, WIDTH, PIXELS = 3, 4, 20


def distances(codes, render, embed, offset, step, rows=range(ROWS)):
    """The metric for matrices: pictures are ``render @ w``, codes ``embed @ picture + offset``."""
    found = edit_consistency(
        torch.from_numpy(codes),
        lambda p: torch.from_numpy(p.numpy() @ embed.T + offset).reshape(-1, ROWS, WIDTH),
        lambda w: torch.from_numpy(w.flatten(1).numpy() @ render.T),
        lambda w: w + torch.from_numpy(step),
        lambda w: w - torch.from_numpy(step),
        rows,
    )
    return found.numpy()


def test_of_a_linear_generator_it_is_what_the_encoder_loses_of_the_edited_code():
    draw = np.random.default_rng(0)
    codes, step = draw.normal(size=(5, ROWS, WIDTH)), draw.normal(size=(ROWS, WIDTH))
    render = draw.normal(size=(PIXELS, ROWS * WIDTH))
    embed, offset = draw.normal(size=(ROWS * WIDTH, PIXELS)), draw.normal(size=ROWS * WIDTH)
    # w - (E (G (w + s)) + b - s) = (1 - E G) (w + s) - b
    lost = np.eye(ROWS * WIDTH) - embed @ render
    left = [lost @ (code + step).ravel() - offset for code in codes]
    expected = [np.sqrt((row**2).sum()) for row in left]
    np.testing.assert_allclose(distances(codes, render, embed, offset, step), expected)
    first = [np.sqrt((row[:WIDTH] ** 2).sum()) for row in left]
    np.testing.assert_allclose(distances(codes, render, embed, offset, step, [0]), first)
    inverse = np.linalg.pinv(render)
    assert distances(codes, render, inverse, 0, step).max() < 1e-9


def test_an_encoder_that_is_blind_to_one_number_loses_the_edit_of_it():
    codes = np.zeros((2, ROWS, WIDTH))
    codes[1, 1, 2] = 3.0
    step = np.zeros((ROWS, WIDTH))
    step[1, 2] = 0.5
    blind = np.eye(ROWS * WIDTH)
    blind[WIDTH + 2, WIDTH + 2] = 0
    found = distances(codes, np.eye(ROWS * WIDTH), blind, 0, step)
    assert found == pytest.approx([0.5, 3.5])


def test_the_published_mean_leaves_out_the_outer_hundredths():
    values = np.random.default_rng(0).permutation(np.arange(201.0) ** 2)
    expected = np.mean(np.arange(2, 199.0) ** 2)
    assert published_mean(values) == pytest.approx(expected)
    values[values == 200**2] = 1e9
    assert published_mean(values) == pytest.approx(expected)
    assert published_mean([1.0, 2.0, 60.0]) == 21
