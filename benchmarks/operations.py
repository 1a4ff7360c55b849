"""Counts what a function asks of a device: its operations, their arithmetic and their memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

# Memory that is only reserved runs no kernel.
_FREE = ("empty", "new_empty")


class Operation(NamedTuple):
    """What one operation does.

    Attributes:
        flops: Floating-point operations of a convolution or matrix product; 0 for others. A
            multiplication with an addition counts as two.
        traffic: Bytes that are read and written.
    """

    flops: int
    traffic: int


@contextmanager
def operations() -> Iterator[list[Operation]]:
    """Note the operations of a `with` block.

    Views, and the reading of one number, are left out, since they run no kernel.
    """
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    formulas = _formulas()
    found: list[Operation] = []

    def tensors(values: Any) -> list[Tensor]:
        return [value for value in tree_leaves(values) if isinstance(value, Tensor)]

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **kwargs or {})
            given, made = tensors((args, kwargs)), tensors(out)
            places = {t.untyped_storage()._cdata for t in given}
            is_view = not func._schema.is_mutable and all(
                t.untyped_storage()._cdata in places for t in made
            )
            if is_view or func.overloadpacket.__name__.startswith(_FREE):
                return out
            formula = formulas.get(func.overloadpacket)
            flops = formula(*args, **kwargs or {}, out_val=out) if formula else 0
            found.append(
                Operation(flops, sum(map(_bytes, {id(t): t for t in (*given, *made)}.values())))
            )
            return out

    with Noting():
        yield found


def _bytes(value: Any) -> int:
    # Of an expanded tensor each number is read once.
    return int(min(value.nbytes, value.untyped_storage().nbytes()))


def _formulas() -> dict[Any, Any]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

    def backward(grad: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
        # The formula of torch ignores groups in the gradient of a convolution's weights.
        transposed, wanted = rest[4], rest[7]
        once = conv_flop_count(x.shape, weight.shape, grad.shape, transposed)
        return once * (int(wanted[0]) + int(wanted[1]))

    return {
        **FlopCounterMode(display=False).flop_registry,
        torch.ops.aten.convolution_backward: backward,
    }
