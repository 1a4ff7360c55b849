"""Adam in the eigenbasis of the first gradient, for tensors with a leading image axis.

`scales` and `rms` say how large the things are that it moves, so that its steps are shares of
them. A network may write a layer with any factor between stored and effective weights (equalised
learning rates are such factors). Then all that is relative stays the same: values times c have
gradients times 1 / c, and gradients times scales do not change.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dhr_batch.stages.device import full_precision


class RotatedAdam:
    """Adam with its moments in a rotated basis of the channels.

    The channels of a generator are strongly correlated, so plain Adam takes steps of equal size
    along directions with the same effect. They are separate in the eigenbasis V of ``G^T G``, G
    being the first gradient, times the scale c, with the channels as columns. With ``g = c grad V``
    a step is

        m <- b1 m + (1 - b1) g;    s <- b2 s + (1 - b2) g^2
        value <- value - rate c (m / (1 - b1^t)) / (sqrt(s / (1 - b2^t)) + eps rms(g)) V^T

    where rms(g) is the root of the mean of ``s / (1 - b2^t)`` over all elements of an image.

    This is SOAP (Vyas et al., 2024, arXiv 2409.11321) with one side rotated and the basis computed
    once. Directions with less than `weak` of the energy of the strongest one have no well-defined
    eigenvectors in finite precision. They share one second moment, so a step does not depend on
    how they are rotated among each other. Images never share a basis.

    Args:
        values: Tensors [B, ...] that `step` changes in place.
        axes: The axis of each that is rotated, or None for plain Adam. See `channels`.
        scales: The scale of each, of a shape that broadcasts to the value and has size 1 along the
            rotated axis. A step of rate 1 moves an element by about its scale. None: all are 1.
        betas: Decay rates b1 and b2 of the two moments.
        eps: Added to the denominator, as a share of the running root mean square of the gradient.
        weak: Share of the largest eigenvalue up to which a direction is weak.
    """

    def __init__(
        self,
        values: Sequence[Tensor],
        axes: Sequence[int | None],
        scales: Sequence[Tensor] | None = None,
        betas: tuple[float, float] = (0.75, 0.95),
        eps: float = 1e-6,
        weak: float = 1e-5,
    ) -> None:
        self.values, self.axes, self.betas, self.eps = list(values), list(axes), betas, eps
        self.weak = weak
        self.scales = [v.new_ones(()) for v in self.values] if scales is None else list(scales)
        self.first = [torch.zeros_like(v) for v in self.values]
        self.second = [torch.zeros_like(v) for v in self.values]
        self.bases: list[Basis | None] = [None] * len(self.values)
        self.steps = 0

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], rate: float) -> None:
        """Change each element by at most about `rate` times its scale.

        Args:
            grads: One gradient for each value, in the same order.
            rate: Learning rate of this step.

        Raises:
            ArithmeticError: The first gradient of a rotated value is not finite.
        """
        self.steps += 1
        if self.steps == 1:
            scaled = (grad * scale for grad, scale in zip(grads, self.scales, strict=True))
            self.bases = _bases(scaled, self.axes, self.weak)
        for i, (value, given) in enumerate(zip(self.values, grads, strict=True)):
            with full_precision(value):
                self._step(i, value, given * self.scales[i], rate)

    def _step(self, i: int, value: Tensor, grad: Tensor, rate: float) -> None:
        fresh = [1 - beta**self.steps for beta in self.betas]
        basis = self.bases[i]
        if basis is not None:
            grad = basis.rotate(grad)
        self.first[i].lerp_(grad, 1 - self.betas[0])
        self.second[i].mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
        second = self.second[i] if basis is None else basis.shared(self.second[i])
        size = (second / fresh[1]).sqrt_()
        # A share of the gradient's own size, and something above 0 if the gradient is 0.
        floor = (self.eps * rms(size)).clamp_min(torch.finfo(size.dtype).tiny ** 0.5)
        move = torch.div(self.first[i], size.add_(floor), out=size).div_(fresh[0])
        move = move if basis is None else basis.rotate_back(move)
        value.sub_(move.mul_(self.scales[i]), alpha=rate)


def rms(values: Tensor, first_axis: int = 1) -> Tensor:
    """Return the root mean square over the axes from `first_axis` on, which keep the size 1."""
    return values.square().mean(tuple(range(first_axis, values.ndim)), keepdim=True).sqrt()


def scales(weight: Tensor) -> Tensor:
    """Return the scales of the elements of a weight [out, ...], of a shape that broadcasts to it.

    The scale is the root mean square r of the elements that make the same output, divided by the
    root of the number k of positions of a kernel. Each output has its own r, because a few outputs
    may be a hundred times as large as most (depthwise kernels of the shipped generators). In the
    rotated basis the directions of the inputs are separate, but the positions of a kernel see
    nearly equal neighbours, so their steps add up: k steps of r / sqrt(k) change an output about as
    much, relative to its size, as one step of r does in a kernel with one position.

    An output with zeros only, and each element of a vector, has the r of the whole weight. A weight
    of zeros has no scale, keeps its value, and so remains what it is however its network is
    written.

    Example:
        >>> scales(torch.ones(2, 3)).flatten(), scales(torch.ones(2, 3, 2, 2)).flatten()
        (tensor([1., 1.]), tensor([0.5000, 0.5000]))
    """
    whole = rms(weight, 0)
    if weight.ndim < 2:
        return whole
    each = rms(weight)
    positions = weight[0, 0].numel() if weight.ndim == 4 else 1
    return torch.where(each > 0, each, whole) / math.sqrt(positions)


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


def _bases(grads: Iterable[Tensor], axes: Sequence[int | None], weak: float) -> list[Basis | None]:
    """Return the basis of each gradient [B, ...] along its axis.

    It is None (plain Adam) without an axis, or if the eigenvectors cannot be computed. All matrices
    of a size are solved in one call, because a GPU is waited for in each.

    Raises:
        ArithmeticError: A gradient is not finite.
    """
    grams: dict[int, Tensor] = {}
    for i, (grad, axis) in enumerate(zip(grads, axes, strict=True)):
        if axis is not None:
            columns = grad.movedim(axis, -1).flatten(1, -2)
            with full_precision(grad):
                grams[i] = columns.transpose(1, 2) @ columns
    if grams and not torch.stack([gram.isfinite().all() for gram in grams.values()]).all():
        raise ArithmeticError("the first gradient of the refinement is not finite")
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for i, gram in grams.items():
        sizes[gram.shape[-1]].append(i)
    found: list[Basis | None] = [None] * len(axes)
    for same in sizes.values():
        for i, solved in zip(same, _eigenvectors([grams[i] for i in same]), strict=True):
            axis = axes[i]
            if solved is not None and axis is not None:
                found[i] = Basis(axis, *solved, weak)
    return found


def _eigenvectors(grams: Sequence[Tensor]) -> list[tuple[Tensor, Tensor] | None]:
    """Return eigenvalues [B, c] and eigenvectors [B, c, c] of each of some matrices [B, c, c].

    None stands for a matrix whose eigenvectors the solver does not find.
    """
    try:
        energy, vectors = torch.linalg.eigh(torch.cat([*grams]))
    except torch.linalg.LinAlgError:
        if len(grams) == 1:
            return [None]
        return [solved for gram in grams for solved in _eigenvectors([gram])]
    images = len(grams[0])
    return [*zip(energy.split(images), vectors.split(images), strict=True)]


class Basis:
    """Eigenvectors of the first gradient along one axis, for each image.

    Args:
        axis: The axis of channels.
        energy: Eigenvalues, [B, c], the largest last.
        vectors: Eigenvectors in columns, [B, c, c].
        weak: See `RotatedAdam`.
    """

    def __init__(self, axis: int, energy: Tensor, vectors: Tensor, weak: float) -> None:
        self.axis, self.vectors = axis, vectors
        self.weak = (energy <= weak * energy[:, -1:]).to(energy)

    def rotate(self, x: Tensor) -> Tensor:
        """Return the coordinates of x [B, ...] along the eigenvectors, in place of its channels."""
        return self._times(x, self.vectors)

    def rotate_back(self, x: Tensor) -> Tensor:
        """Invert `rotate`."""
        return self._times(x, self.vectors.transpose(1, 2))

    def shared(self, second: Tensor) -> Tensor:
        """Return second moments in which those of weak directions are replaced by their mean."""
        shape = [1] * second.ndim
        shape[0], shape[self.axis] = self.weak.shape
        weak = self.weak.reshape(shape)
        mean = (second * weak).sum(self.axis, keepdim=True)
        mean = mean / weak.sum(self.axis, keepdim=True).clamp_min(1)
        return torch.lerp(second, mean, weak)

    def _times(self, x: Tensor, matrix: Tensor) -> Tensor:
        if self.axis == 1:
            # Without transposing the values, of which a feature has many.
            return (matrix.transpose(1, 2) @ x.flatten(2)).reshape(x.shape)
        last = x.movedim(self.axis, -1)
        product = last.flatten(1, -2) @ matrix
        return product.reshape(last.shape).movedim(-1, self.axis)
