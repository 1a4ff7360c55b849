"""The device of a process, and the precision of its convolutions and matrix products.

Both are set once, before a network is loaded. Flags of torch that hold for the whole process are
set nowhere else, since threads that switch them back and forth disturb each other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from dhr_batch.stages.base import Context

Precision = Literal["fp32", "tf32", "bf16"]


def set_precision(precision: Precision) -> None:
    """Set how this process multiplies float32 numbers on NVIDIA GPUs, in all of its threads.

    With `tf32`, convolutions and matrix products round their factors to 11 bits; otherwise they do
    not. Other devices have no TF32, and it changes nothing on them.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def use(precision: Precision = "fp32") -> str:
    """Set the precision of this process, and return its device: `cuda` if there is one."""
    import torch

    set_precision(precision)
    return "cuda" if torch.cuda.is_available() else "cpu"


def mixed_precision(context: Context) -> AbstractContextManager[object]:
    """Return a context in which this thread computes as `precision` says, for `embed` and `refine`.

    With `bf16`, convolutions and matrix products inside are computed in bfloat16 from and to
    tensors that stay float32. Otherwise nothing changes.
    """
    import torch

    # The cache of casts would keep the values that parameters had before a step.
    return torch.autocast(
        torch.device(context.device).type,
        torch.bfloat16,
        enabled=context.precision == "bf16",
        cache_enabled=False,
    )


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Return a context, inside `mixed_precision`, in which this thread computes in float32.

    Args:
        like: A tensor on the device.
    """
    import torch

    return torch.autocast(like.device.type, enabled=False)
