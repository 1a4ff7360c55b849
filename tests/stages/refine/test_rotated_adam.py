"""Adam in a rotated basis: what the rotation gains, and that it adds no dependence on anything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dhr_batch.stages.refine.rotated_adam import RotatedAdam, channels


def correlated(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A linear regression [1, 12, 8] -> inputs that are strongly correlated, and its target."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(8, 8, generator=draw, dtype=torch.float64)
    scales = torch.logspace(0, -2, 8, dtype=torch.float64)
    inputs = torch.randn(64, 8, generator=draw, dtype=torch.float64) * scales @ mix
    return inputs, inputs @ torch.randn(8, 12, generator=draw, dtype=torch.float64)


def loss(weight: Tensor, inputs: Tensor, target: Tensor) -> Tensor:
    return (inputs @ weight.transpose(1, 2) - target).square().mean((1, 2)).sum()


def fitted(axis: int | None, steps: int = 150) -> float:
    inputs, target = correlated()
    weight = torch.zeros(1, 12, 8, dtype=torch.float64, requires_grad=True)
    adam = RotatedAdam([weight], [axis])
    for _ in range(steps):
        adam.step(torch.autograd.grad(loss(weight, inputs, target), [weight]), 0.05)
    return loss(weight, inputs, target).item()


def test_correlated_channels_are_fitted_faster_in_the_rotated_basis() -> None:
    assert fitted(2) < 0.2 * fitted(None)


def test_images_do_not_share_a_basis() -> None:
    draw = torch.Generator().manual_seed(1)
    grads = [torch.randn(3, 12, 8, generator=draw, dtype=torch.float64) for _ in range(5)]
    together = torch.zeros(3, 12, 8, dtype=torch.float64)
    adam = RotatedAdam([together], [2])
    for grad in grads:
        adam.step([grad], 0.1)
    for i in range(3):
        alone = torch.zeros(1, 12, 8, dtype=torch.float64)
        adam = RotatedAdam([alone], [2])
        for grad in grads:
            adam.step([grad[i : i + 1]], 0.1)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-9)


def test_a_step_does_not_depend_on_how_weak_directions_are_rotated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first gradient has rank 3 of 8; the eigenvectors of the rest are arbitrary."""
    draw = torch.Generator().manual_seed(2)
    left, right = (torch.randn(1, *s, generator=draw).double() for s in ((12, 3), (3, 8)))
    grads = [left @ right, *torch.randn(4, 1, 12, 8, generator=draw).double()]
    eigh = torch.linalg.eigh

    def moved() -> Tensor:
        value = torch.zeros(1, 12, 8, dtype=torch.float64)
        adam = RotatedAdam([value], [2])
        for grad in grads:
            adam.step([grad], 0.1)
        return value

    turn = torch.linalg.qr(torch.randn(1, 5, 5, generator=draw).double())[0]

    def turned(gram: Tensor) -> tuple[Tensor, Tensor]:
        energy, vectors = eigh(gram)
        return energy, torch.cat([vectors[:, :, :5] @ turn, vectors[:, :, 5:]], 2)

    expected = moved()
    monkeypatch.setattr(torch.linalg, "eigh", turned)

    torch.testing.assert_close(moved(), expected, rtol=0, atol=1e-6)


def test_no_gradient_moves_nothing() -> None:
    value = torch.zeros(2, 4, 4)
    adam = RotatedAdam([value], [2])
    adam.step([torch.zeros(2, 4, 4)], 0.1)
    assert not value.any()


def test_a_gradient_that_is_not_finite_is_named() -> None:
    with pytest.raises(ArithmeticError, match="not finite"):
        RotatedAdam([torch.zeros(1, 4, 4)], [2]).step([torch.full((1, 4, 4), torch.nan)], 0.1)


def test_without_eigenvectors_it_is_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(gram: Tensor) -> None:
        raise torch.linalg.LinAlgError("does not converge")

    plain = fitted(None, 10)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    assert fitted(2, 10) == plain


def test_matrices_of_a_size_are_solved_together_and_fail_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = torch.Generator().manual_seed(3)
    shapes = [(2, 12, 8), (2, 12, 6), (2, 5), (2, 9, 8)]
    grads = [[torch.randn(s, generator=draw).double() for s in shapes] for _ in range(3)]
    axes = [2, 2, None, 2]

    def moved(chosen: list[int]) -> list[Tensor]:
        values = [torch.zeros(shapes[i], dtype=torch.float64) for i in chosen]
        adam = RotatedAdam(values, [axes[i] for i in chosen])
        for step in grads:
            adam.step([step[i] for i in chosen], 0.1)
        return values

    solved: list[tuple[int, ...]] = []
    eigh = torch.linalg.eigh
    gram = grads[0][0].transpose(1, 2) @ grads[0][0]

    def noted(grams: Tensor, fails: bool = False) -> tuple[Tensor, Tensor]:
        solved.append(tuple(grams.shape))
        if fails and any(torch.equal(own, gram[0]) for own in grams):
            raise torch.linalg.LinAlgError("does not converge")
        return eigh(grams)

    monkeypatch.setattr(torch.linalg, "eigh", noted)
    together = moved([0, 1, 2, 3])
    assert solved == [(4, 8, 8), (2, 6, 6)]
    for i, value in enumerate(together):
        torch.testing.assert_close(moved([i])[0], value, rtol=0, atol=1e-9)

    monkeypatch.setattr(torch.linalg, "eigh", lambda grams: noted(grams, fails=True))
    failed = moved([0, 1, 2, 3])
    for i in (1, 2, 3):
        torch.testing.assert_close(failed[i], together[i], rtol=0, atol=1e-9)
    axes[0] = None
    torch.testing.assert_close(failed[0], moved([0])[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2, 16, 8), 2),  # 1x1 convolution
        ((2, 8, 16, 3, 3), 2),  # 3x3: each kernel position counts as an output
        ((2, 16, 1, 3, 3), None),  # depthwise
        ((2, 16), None),  # bias
        ((2, 12, 256), None),  # image head: its gradient has rank 12
    ],
)
def test_inputs_are_rotated_where_the_gradient_says_how(
    shape: tuple[int, ...], axis: int | None
) -> None:
    assert channels(torch.zeros(shape)) == axis
