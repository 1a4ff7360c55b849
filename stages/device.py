"""The device of a process, and the precision of its convolutions and matrix products.

Both are set once, before a network is loaded. Flags of torch that hold for the whole process are
set nowhere else, since threads that switch them back and forth disturb each other.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from dhr_batch.stages.registry import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor
    from torch.cuda import Stream

Precision = Literal["fp32", "tf32", "bf16"]
Kind = Literal["cuda", "mps", "xpu", "cpu"]


def count(kind: Kind) -> int:
    """Return the number of devices of a kind that torch can use on this machine."""
    import torch

    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind)
    return module.device_count() if module.is_available() else 0


def check(kind: Kind) -> None:
    """Check that torch can use a device of a kind on this machine.

    Raises:
        InvalidInput: If there is none.
    """
    if not count(kind):
        found = [other for other in get_args(Kind) if count(other)]
        raise InvalidInput(
            f"--device {kind}: torch finds no such device on this machine",
            f"choose from: {', '.join(found)}, or leave it out; see `dhr-batch doctor`",
        )


def label(kind: Kind) -> str:
    """Return the name of the current device of a kind."""
    import torch

    names = {"cpu": "CPU", "mps": "Apple GPU"}
    return names.get(kind) or getattr(torch, kind).get_device_name()


def set_precision(precision: Precision) -> None:
    """Set how this process multiplies float32 numbers on NVIDIA GPUs, in all of its threads.

    With `tf32`, convolutions and matrix products round their factors to 11 bits; otherwise they do
    not. Other devices have no TF32, and it changes nothing on them.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def stream(kind: Kind, part: str) -> AbstractContextManager[object]:
    """Return a context in which a thread works on an NVIDIA GPU beside other threads.

    Without it, the kernels and copies of all threads form one queue, and each wait for a result is
    a wait for all that other threads have queued before.

    Args:
        kind: The kind of device. Other kinds have one queue.
        part: A name for the work of the thread. Each has a stream of its own.
    """
    if kind != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.stream(_stream(part))


@cache
def _stream(part: str) -> Stream:
    import torch

    # Short tasks of the host come before the long ones of the other threads.
    return torch.cuda.Stream(priority=-1)


def use(precision: Precision = "fp32", kind: Kind | None = None) -> Kind:
    """Set the precision of this process, and return its device.

    Args:
        precision: The precision.
        kind: The device; None for `cuda` if there is one, else `cpu`.

    Raises:
        InvalidInput: If there is no such device.
    """
    if kind is not None:
        check(kind)
    set_precision(precision)
    return kind or ("cuda" if count("cuda") else "cpu")


def mixed_precision(device: str, precision: Precision) -> AbstractContextManager[object]:
    """Return a context in which this thread computes as a precision says in `embed` and `refine`.

    With `bf16`, convolutions and matrix products inside are computed in bfloat16 from and to
    tensors that stay float32. Otherwise nothing changes.
    """
    import torch

    # The cache of casts would keep the values that parameters had before a step.
    return torch.autocast(
        torch.device(device).type,
        torch.bfloat16,
        enabled=precision == "bf16",
        cache_enabled=False,
    )


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Return a context, inside `mixed_precision`, in which this thread computes in float32.

    Args:
        like: A tensor on the device.
    """
    import torch

    return torch.autocast(like.device.type, enabled=False)
