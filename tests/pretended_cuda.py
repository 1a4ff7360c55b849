"""A CUDA device that is not there, so that code for GPUs is tested on machines without one.

Tensors on it hold their numbers in host memory, but torch, in Python and in C++, sees them on
``cuda:0``. What CUDA refuses is refused as well:

* operations on tensors of both devices, except CPU tensors without dimensions in pointwise
  operations, and CPU tensors as indices
* `numpy()` and `np.asarray`
* a generator of random numbers that belongs to the CPU

`watch` counts the waits: the places where the host needs a value of the device, or copies memory
that is not pinned. What `torch.cuda` says of memory is what tensors hold. Results are those of the
CPU. The device has neither streams nor TF32 nor autocast.

`install` changes torch for the rest of the process, so its tests run in a process of their own.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_BACKEND = "pretended"
# Python sees the first one. C++ sees the second, as it would ask a driver about the first.
_SHOWN = torch.device("cuda", 0)
# Operations whose results or errors the host waits for.
_WAITING = frozenset({
    "_linalg_eigh", "linalg_eigh", "_linalg_svd", "linalg_inv_ex", "geqrf", "nonzero",
    "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "nms", "bincount",
    "histc", "_local_scalar_dense", "item", "is_nonzero", "repeat_interleave",
})  # fmt: skip
_COPIES = frozenset({"copy_", "_to_copy", "copy", "_foreach_copy_"})
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
_ALSO_POINTWISE = frozenset({
    "where", "lerp", "lerp_", "masked_fill", "masked_fill_", "fill_", "clamp", "add", "sub",
})  # fmt: skip
_MAKERS = (
    "empty.memory_format", "empty_strided", "zeros", "ones", "full", "arange", "arange.start",
    "arange.start_step", "eye", "eye.m", "linspace", "rand", "rand.generator", "randn",
    "randn.generator", "randint", "randint.low", "randint.generator", "randint.low_generator",
    "randperm", "randperm.generator", "scalar_tensor", "tril_indices", "triu_indices",
    "normal.float_float",
)  # fmt: skip

Waits = Counter[tuple[str, str]]
_watchers: list[Waits] = []
_installed: list[Any] = []


class _Memory:
    """The bytes that tensors of the device hold, now and at most."""

    def __init__(self) -> None:
        self.total, self.held, self.peak = 2**34, 0, 0
        self._tensors: Counter[int] = Counter()
        # Finalizers run wherever the last reference is dropped, also inside of `hold`.
        self._lock = threading.RLock()

    def hold(self, tensor: torch.Tensor, inner: torch.Tensor) -> None:
        storage = inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        with self._lock:
            if not self._tensors[key]:
                self.held += size
                self.peak = max(self.peak, self.held)
            self._tensors[key] += 1
        # The finalizer keeps the storage, so that no other one gets its key before.
        weakref.finalize(tensor, self._release, key, size, storage)

    def _release(self, key: int, size: int, _: Any) -> None:
        with self._lock:
            self._tensors[key] -= 1
            if not self._tensors[key]:
                del self._tensors[key]
                self.held -= size

    def reset(self, *_: Any) -> None:
        self.peak = self.held


memory = _Memory()


@contextmanager
def watch() -> Iterator[Waits]:
    """Count the waits of all threads, by the line of the project and the operation."""
    waits: Waits = Counter()
    _watchers.append(waits)
    try:
        yield waits
    finally:
        _watchers.remove(waits)


def _line() -> str:
    """Return the file and line of the project that asked for the current operation."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("dhr_batch.") and module != __name__:
            return f"{module}:{frame.f_lineno}"
        frame = frame.f_back
    return "a thread of torch"


def _wait(what: str) -> None:
    for waits in _watchers:
        waits[_line(), what] += 1


class PretendedTensor(torch.Tensor):
    """A tensor of the device. Its numbers are in the CPU tensor `inner`."""

    inner: torch.Tensor

    @staticmethod
    def __new__(
        cls: type[PretendedTensor], inner: torch.Tensor, requires_grad: bool = False
    ) -> PretendedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(_BACKEND, 0),
            requires_grad=requires_grad,
        )
        made.inner = inner
        memory.hold(made, inner)
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    device = property(lambda self: _SHOWN)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.inner!r} on {_SHOWN}"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {_SHOWN} device type tensor to numpy ({_line()})")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendedTensor:
        made = PretendedTensor(self.inner.clone(), self.requires_grad)
        if getattr(self, "_is_param", False):
            made._is_param = True  # type: ignore[attr-defined]
        return memo.setdefault(id(self), made)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@cache
def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )


@cache
def _has_parts(func: Any) -> bool:
    """Return whether autograd takes an operation apart."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """Return what an operation takes or gives, with its tensors and numbers changed.

    torch's own function, which knows all kinds of trees, would take most of the time of the tests.
    """
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(change, part) for part in value])
    return change(value)


def _check(func: Any, name: str, flat: list[Any]) -> None:
    """Refuse what CUDA refuses."""
    if any(isinstance(v, torch.Generator) and v.device.type == "cpu" for v in flat):
        raise RuntimeError(f"a generator of the CPU draws numbers on {_SHOWN} ({_line()})")
    cpu = [v for v in flat if isinstance(v, torch.Tensor) and not isinstance(v, PretendedTensor)]
    if name in _COPIES or not cpu:
        return
    if name in _INDEXING:
        indices = [t for t in cpu if not t.is_floating_point()]
        if indices:
            _wait(f"{name} by CPU indices")
        cpu = [t for t in cpu if t.is_floating_point() and t.ndim]
    pointwise = torch.Tag.pointwise in func.tags or name in _ALSO_POINTWISE
    if cpu and not (pointwise and all(t.ndim == 0 for t in cpu)):
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {func} of tensors on {_SHOWN} and "
            f"CPU tensors of {[list(t.shape) for t in cpu]} ({_line()})"
        )


def _count(name: str, args: Any, to_cpu: bool) -> None:
    """Count the wait of an operation, if it is one."""
    if name == "copy_":
        ours, other = (isinstance(t, PretendedTensor) for t in args[:2])
        pinned = len(args) > 2 and args[2] and hasattr(args[1], "pinned")
        if ours and not other and args[1].ndim and args[1].numel() and not pinned:
            _wait("copy to the device")
        elif other and not ours:
            _wait("copy to the host")
    elif name == "_to_copy" and to_cpu:
        _wait("copy to the host")
    elif name in _WAITING:
        _wait(name)
    elif name in _INDEXING and any(
        t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
    ):
        _wait(f"{name} by a boolean mask")


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Do an operation of which at least one argument is on the device."""
    # Inference mode hands operations over whole that autograd would have taken apart.
    if _has_parts(func):
        parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    name = func._schema.name.partition("::")[2]
    flat: list[Any] = []

    def inner(value: Any) -> Any:
        flat.append(value)
        return value.inner if isinstance(value, PretendedTensor) else value

    inner_args = _mapped(inner, args)
    inner_kwargs = {key: _mapped(inner, value) for key, value in kwargs.items()}
    _check(func, name, flat)
    target = kwargs.get("device")
    to_cpu = target is not None and torch.device(target).type == "cpu"
    _count(name, args, to_cpu)
    if target is not None:
        inner_kwargs["device"] = torch.device("cpu")
    out = func(*inner_args, **inner_kwargs)
    if to_cpu:
        return out
    # What is written in place, or given as `out`, comes back as the object that was given.
    given = {id(t.inner): t for t in flat if isinstance(t, PretendedTensor)}
    # In inference mode a view of an ordinary tensor is an ordinary tensor.
    ordinary = (
        torch.is_inference_mode_enabled()
        and _is_view(func)
        and any(isinstance(t, PretendedTensor) and not t.is_inference() for t in flat)
    )

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, PretendedTensor):
            return value
        if id(value) in given:
            return given[id(value)]
        return PretendedTensor(value)

    with torch.inference_mode(False) if ordinary else nullcontext():
        return _mapped(wrap, out)


def _maker(operation: Any) -> Callable[..., PretendedTensor]:
    def make(*args: Any, **kwargs: Any) -> PretendedTensor:
        _check(operation, "", list(kwargs.values()))
        kwargs = {k: v for k, v in kwargs.items() if v is not None}
        return PretendedTensor(operation(*args, **kwargs | {"device": torch.device("cpu")}))

    return make


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    """Do the copy in which `torch.tensor(numbers, device="cuda")` ends."""
    ours, other = isinstance(target, PretendedTensor), isinstance(source, PretendedTensor)
    if ours != other:
        _wait("copy to the device" if ours else "copy to the host")
    (target.inner if ours else target).copy_(source.inner if other else source)
    return target


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def install() -> None:
    """Make the device. Called once in a process, before anything is put on it.

    Raises:
        RuntimeError: The machine has a GPU.
    """
    if torch.cuda.is_available():
        raise RuntimeError("this machine has a GPU: set CUDA_VISIBLE_DEVICES= to pretend another")
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    _setup_privateuseone_for_python_backend(_BACKEND)
    library = torch.library.Library("aten", "IMPL")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for name in _MAKERS:
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
        for key in ("CUDA", "PrivateUse1"):
            library.impl(name, _maker(operation), key, allow_override=True)
    # A library that is deleted takes its kernels with it.
    _installed.append(library)
    for name, value in {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "_lazy_init": None,
        "empty_cache": None,
        "get_device_name": "a pretended GPU",
    }.items():
        setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    torch.cuda.synchronize = lambda *_: _wait("synchronize")
    torch.cuda.Stream = torch.cuda.stream = lambda *_, **__: nullcontext()  # type: ignore[misc, assignment]
    torch.cuda.memory_allocated = lambda *_: memory.held
    torch.cuda.max_memory_allocated = lambda *_: memory.peak
    torch.cuda.mem_get_info = lambda *_: (memory.total - memory.held, memory.total)
    torch.cuda.reset_peak_memory_stats = memory.reset
    torch.Tensor.pin_memory = _pinned  # type: ignore[method-assign, assignment]
    backend = getattr(torch, _BACKEND)
    backend.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    backend.set_rng_state = lambda *_: None
    # Optimisers treat tensors of a class that they do not know in a way that GPUs never see.
    for module in (optimizer, _foreach_utils):
        module._foreach_supported_types.append(PretendedTensor)  # type: ignore[attr-defined]
