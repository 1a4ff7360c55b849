"""Adam in the eigenbasis of the first gradient, for tensors with a leading image axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RotatedAdam:
    """Adam with its moments in a rotated basis of the channels.

    The channels of a generator are strongly correlated, so plain Adam takes steps of equal size
    along directions with the same effect. They are separate in the eigenbasis V of ``G^T G``, G
    being the first gradient with the channels as columns. With ``g = grad V`` a step is

        m <- b1 m + (1 - b1) g;    s <- b2 s + (1 - b2) g^2
        value <- value - rate (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + eps) V^T

    This is SOAP (Vyas et al., 2024, arXiv 2409.11321) with one side rotated and the basis computed
    once. Directions with less than `weak` of the energy of the strongest one have no well-defined
    eigenvectors in finite precision. They share one second moment, so a step does not depend on
    how they are rotated among each other. Images never share a basis.

    Args:
        values: Tensors [B, ...] that `step` changes in place.
        axes: The axis of each that is rotated, or None for plain Adam. See `channels`.
        betas: Decay rates b1 and b2 of the two moments.
        eps: Added to the denominator.
        weak: Share of the largest eigenvalue up to which a direction is weak.
    """

    def __init__(
        self,
        values: Sequence[Tensor],
        axes: Sequence[int | None],
        betas: tuple[float, float] = (0.75, 0.95),
        eps: float = 1e-8,
        weak: float = 1e-5,
    ) -> None:
        self.values, self.axes, self.betas, self.eps = list(values), list(axes), betas, eps
        self.weak = weak
        self.first = [torch.zeros_like(v) for v in self.values]
        self.second = [torch.zeros_like(v) for v in self.values]
        self.bases: list[Basis | None] = [None] * len(self.values)
        self.steps = 0

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], rate: float) -> None:
        """Change each value by at most about `rate` per element.

        Args:
            grads: One gradient for each value, in the same order.
            rate: Learning rate of this step.

        Raises:
            ArithmeticError: The first gradient of a rotated value is not finite.
        """
        self.steps += 1
        fresh = [1 - beta**self.steps for beta in self.betas]
        for i, (value, grad) in enumerate(zip(self.values, grads, strict=True)):
            axis = self.axes[i]
            if axis is not None and self.steps == 1:
                self.bases[i] = _basis(grad, axis, self.weak)
            basis = self.bases[i]
            if basis is not None:
                grad = basis.rotate(grad)
            self.first[i].lerp_(grad, 1 - self.betas[0])
            self.second[i].mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
            second = self.second[i] if basis is None else basis.shared(self.second[i])
            scale = (second / fresh[1]).sqrt_().add_(self.eps)
            move = self.first[i] / scale / fresh[0]
            value.sub_(move if basis is None else basis.rotate_back(move), alpha=rate)


def channels(weight: Tensor) -> int | None:
    """Return the axis of the inputs of a weight [B, out, in, ...], along which it is rotated.

    None for biases, depthwise kernels and layers with fewer outputs (times kernel positions) than
    inputs, whose gradient does not determine the rotation.

    Example:
        >>> channels(torch.zeros(2, 64, 32, 3, 3)), channels(torch.zeros(2, 64))
        (2, None)
    """
    if weight.ndim < 3:
        return None
    inputs = weight.shape[2]
    return 2 if inputs > 1 and weight[0].numel() >= inputs**2 else None


def _basis(grad: Tensor, axis: int, weak: float) -> Basis | None:
    """Return the basis, or None (plain Adam) if the eigenvectors cannot be computed."""
    try:
        return Basis(grad, axis, weak)
    except torch.linalg.LinAlgError:
        return None


class Basis:
    """Eigenvectors of the first gradient along one axis, for each image.

    Args:
        grad: The gradient, [B, ...].
        axis: Its axis of channels.
        weak: See `RotatedAdam`.

    Raises:
        ArithmeticError: The gradient is not finite.
    """

    def __init__(self, grad: Tensor, axis: int, weak: float) -> None:
        self.axis = axis
        columns = grad.movedim(axis, -1).flatten(1, -2)
        gram = columns.transpose(1, 2) @ columns
        if not torch.isfinite(gram).all():
            raise ArithmeticError("the first gradient of the refinement is not finite")
        energy, self.vectors = torch.linalg.eigh(gram)
        self.weak = (energy <= weak * energy[:, -1:]).to(grad)

    def rotate(self, x: Tensor) -> Tensor:
        """Return the coordinates of x [B, ...] along the eigenvectors, in place of its channels."""
        return self._times(x, self.vectors)

    def rotate_back(self, x: Tensor) -> Tensor:
        """Invert `rotate`."""
        return self._times(x, self.vectors.transpose(1, 2))

    def shared(self, second: Tensor) -> Tensor:
        """Return second moments in which those of weak directions are replaced by their mean."""
        last = second.movedim(self.axis, -1)
        weak = self.weak.reshape(len(last), *[1] * (last.ndim - 2), -1)
        mean = (last * weak).sum(-1, keepdim=True) / weak.sum(-1, keepdim=True).clamp_min(1)
        return torch.lerp(last, mean.expand_as(last), weak.expand_as(last)).movedim(-1, self.axis)

    def _times(self, x: Tensor, matrix: Tensor) -> Tensor:
        last = x.movedim(self.axis, -1)
        product = last.flatten(1, -2) @ matrix
        return product.reshape(last.shape).movedim(-1, self.axis)
