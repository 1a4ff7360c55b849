"""Read checkpoints that others publish without running anything that is inside them.

A pickle is a program: its loader imports and calls whatever the file names. Here nothing is
imported by name. What a StyleGAN2 checkpoint legitimately names is replaced by a few functions of
this module, which make plain containers, tensors and inert records; every other name is an error.
There is no switch that trusts a file.
"""

from __future__ import annotations

import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"
# Torch files from before 1.6 start with a pickle of this number.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


class CheckpointError(ValueError):
    """A file that cannot be read, or that names what no checkpoint needs; says what and why."""


class _Forbidden(Exception):
    """A name in a pickle that is not in the table."""


class Inert:
    """Stands for an object that is not made: keeps the arguments and the state it would get."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _storage(data: bytes) -> Any:
    """What torch's own function would load with a pickle that may run anything."""
    return _torch(io.BytesIO(data))


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise _Forbidden(f"_codecs.encode({encoding!r})")
    return text.encode("latin1")


_TABLE: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Inert,
    ("dnnlib.util", "EasyDict"): dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): Inert,
    ("numpy.core.multiarray", "scalar"): Inert,
    ("numpy._core.multiarray", "scalar"): Inert,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _TABLE[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None


def read(file: Path) -> Any:
    """The content of a torch file, or of a pickle as NVIDIA publishes them.

    The kind is recognised by content, not by the file's name. Returns containers and tensors on
    the CPU, and `Inert` records in place of objects. Raises CheckpointError, which names what a
    file must not contain, and OSError.
    """
    with file.open("rb") as stream:
        start = stream.read(len(_ZIP))
        stream.seek(0)
        try:
            content = None if start == _ZIP else _Unpickler(stream).load()
            if start == _ZIP or content == _TORCH_MAGIC:
                content = _torch(stream)
        except OSError:
            raise
        except _Forbidden as error:
            raise CheckpointError(f"{file} is refused: {_why(str(error))}") from error
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{file} is damaged or no checkpoint: {reason}") from error
    return content


def _torch(stream: BinaryIO) -> Any:
    stream.seek(0)
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise _Forbidden(match[1]) from error
        # Torch's own message advises to load such a file without protection.
        reason = "it is more than weights" if "weights_only" in str(error) else str(error)
        raise ValueError(reason) from error


def _why(name: str) -> str:
    if name.startswith("dnnlib.tflib"):
        return (
            f"it is a TensorFlow checkpoint ({name}); take the PyTorch one, a .pkl of "
            "stylegan2-ada-pytorch"
        )
    return f"it names {name}, which no weights need; nothing of it was run"


def state_dict(module: Any) -> dict[str, Tensor]:
    """Parameters and buffers of a network that `read` returned as an inert record.

    Raises CheckpointError where it is no pickled network.
    """
    try:
        fields = module.arguments[0]["state"]
        own = {**fields["_parameters"], **fields["_buffers"]}
        found = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        for name, child in fields["_modules"].items():
            found |= {f"{name}.{key}": value for key, value in state_dict(child).items()}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(f"not a pickled network: {error!r}") from error
    return found
