"""Adam in the eigenbasis of the first gradient, for tensors with a leading image axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RotatedAdam:
    """Adam whose second moments live in a rotated basis of the channels.

    Channels of a generator are strongly correlated, so that plain Adam takes steps of equal size
    along directions that do the same. In the eigenbasis of ``G^T G``, G being the first gradient
    with the channels as columns, they are separate. This is SOAP (Vyas et al. 2024, arXiv
    2409.11321) with one side rotated and the basis taken once.

    Directions whose share of the first gradient's energy is below `weak` of the largest one's have
    no eigenvectors of their own in finite precision. They share one second moment, which makes a
    step independent of how they are rotated among each other.

    values: tensors [B, ...], changed in place by `step`. axes: the axis of each that is rotated,
    or None for plain Adam (`channels` finds it for weights). Images never share a basis.
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
        """Move each value by at most about `rate` per element. grads: as `values`, in order.

        Raises ArithmeticError where the first gradient of a rotated value is not finite.
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
            value.sub_(move if basis is None else basis.back(move), alpha=rate)


def channels(weight: Tensor) -> int | None:
    """The axis to rotate of a weight [B, out, in, ...]: its inputs.

    None for biases, depthwise kernels and layers with fewer outputs (times kernel positions) than
    inputs, whose gradient does not say how to rotate all of them.
    """
    if weight.ndim < 3:
        return None
    inputs = weight.shape[2]
    return 2 if inputs > 1 and weight[0].numel() >= inputs**2 else None


def _basis(grad: Tensor, axis: int, weak: float) -> Basis | None:
    """None, for plain Adam, where the eigenvectors are not found."""
    try:
        return Basis(grad, axis, weak)
    except torch.linalg.LinAlgError:
        return None


class Basis:
    """Eigenvectors of the first gradient along one axis, for each image.

    Raises ArithmeticError where the gradient is not finite.
    """

    def __init__(self, grad: Tensor, axis: int, weak: float) -> None:
        self.axis = axis
        columns = grad.movedim(axis, -1).flatten(1, -2)
        gram = columns.transpose(1, 2) @ columns
        if not torch.isfinite(gram).all():
            raise ArithmeticError("the gradient is not finite")
        energy, self.vectors = torch.linalg.eigh(gram)
        self.weak = (energy <= weak * energy[:, -1:]).to(grad)

    def rotate(self, x: Tensor) -> Tensor:
        """[B, ...] with channels at `axis` -> the same shape, with eigenvectors there."""
        return self._times(x, self.vectors)

    def back(self, x: Tensor) -> Tensor:
        """The inverse of `rotate`."""
        return self._times(x, self.vectors.transpose(1, 2))

    def shared(self, second: Tensor) -> Tensor:
        """Second moments with those of weak directions replaced by their mean."""
        last = second.movedim(self.axis, -1)
        weak = self.weak.reshape(len(last), *[1] * (last.ndim - 2), -1)
        mean = (last * weak).sum(-1, keepdim=True) / weak.sum(-1, keepdim=True).clamp_min(1)
        return torch.lerp(last, mean.expand_as(last), weak.expand_as(last)).movedim(-1, self.axis)

    def _times(self, x: Tensor, matrix: Tensor) -> Tensor:
        last = x.movedim(self.axis, -1)
        product = last.flatten(1, -2) @ matrix
        return product.reshape(last.shape).movedim(-1, self.axis)
