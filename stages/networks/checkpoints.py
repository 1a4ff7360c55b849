"""Read published checkpoints without running code that they contain.

A pickle is a program: its loader imports and calls whatever the file names. This module imports
nothing by name. The names that a StyleGAN2 checkpoint or a TorchScript archive needs are replaced
by a few functions, which create plain containers, tensors and inert records. Every other name is an
error, and no option turns this check off.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"
# Files of torch before version 1.6 start with a pickle of this number.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


class CheckpointError(ValueError):
    """A file cannot be read, or names something that no checkpoint needs."""

    exit_code = 2


class _Forbidden(Exception):
    """A pickle names something that is not in the table."""


class Inert:
    """Placeholder for an object that is not created, with its arguments and state."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _storage(data: bytes) -> Any:
    """Load a nested file safely, for which torch itself would run any pickle."""
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
    ("numpy", "ndarray"): Inert,
    **{
        (f"numpy.{core}.{module}", name): Inert
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "scalar"),
            ("multiarray", "_reconstruct"),
            ("numeric", "_frombuffer"),
        )
    },
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
    """Return the content of a file of torch, or of a pickle as NVIDIA publishes them.

    The format is recognised by the content and not by the name of the file.

    Returns:
        Containers and tensors on the CPU, with `Inert` records in place of objects.

    Raises:
        CheckpointError: The file is damaged, or names something that no checkpoint needs.
        OSError: The file cannot be read.
    """
    with file.open("rb") as stream, _explained(file):
        start = stream.read(len(_ZIP))
        stream.seek(0)
        content = None if start == _ZIP else _Unpickler(stream).load()
        if start == _ZIP or content == _TORCH_MAGIC:
            content = _torch(stream)
    return content


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn the errors that a damaged or hostile file causes into `CheckpointError`."""
    try:
        yield
    except OSError:
        raise
    except _Forbidden as error:
        raise CheckpointError(f"{file} is refused: {_reason(str(error))}") from error
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{file} is damaged or not a checkpoint: {reason}") from error


def _torch(stream: BinaryIO) -> Any:
    stream.seek(0)
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise _Forbidden(match[1]) from error
        # The message of torch recommends to load such a file without protection.
        reason = "it holds more than weights" if "weights_only" in str(error) else str(error)
        raise ValueError(reason) from error


def _reason(name: str) -> str:
    if name.startswith("dnnlib.tflib"):
        return (
            f"it is a TensorFlow checkpoint ({name}); use the PyTorch one, a .pkl file of "
            "stylegan2-ada-pytorch"
        )
    return (
        f"it names {name}, which weight files do not need; no code of it was run. Use a file from "
        "a source that you trust"
    )


def array(record: Any) -> np.ndarray:
    """Return the array of numbers that `read` returned as an inert record.

    Raises:
        CheckpointError: The record is not an array of numbers.
    """
    try:
        if record.state is None:  # Since protocol 5: data, type, shape, order of axes.
            data, kind, shape, order = record.arguments
        else:  # Version, shape, type, whether the first axis is contiguous, data.
            _, shape, kind, columns, data = record.state
            order = "F" if columns else "C"
        name, byte_order = kind.arguments[0], kind.state[1]
        if not re.fullmatch("[fiu][1248]|b1", name):
            raise ValueError(f"it has elements of type {name}")
        # Big-endian numbers are said so; "|" is for single bytes.
        number = np.dtype(("<" if byte_order == "|" else byte_order) + name)
        return np.frombuffer(data, number).reshape(shape, order=order)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the content is not an array of numbers: {error}") from error


def state_dict(module: Any) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network that `read` returned as an inert record.

    Raises:
        CheckpointError: The record is not a pickled network.
    """
    try:
        fields = module.arguments[0]["state"]
        own = {**fields["_parameters"], **fields["_buffers"]}
        found = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        for name, child in fields["_modules"].items():
            found |= {f"{name}.{key}": value for key, value in state_dict(child).items()}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise CheckpointError(f"the content is not a pickled network: {error!r}") from error
    return found


_SCRIPT_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


def _script_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _untagged(value: Any, *_: Any) -> Any:
    return value


_SCRIPT_TABLE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "device"): Inert,
    ("torch._utils", "_rebuild_tensor_v2"): _script_tensor,
    ("torch.jit._pickle", "restore_type_tag"): _untagged,
    **{
        ("torch.jit._pickle", f"build_{kind}list"): list
        for kind in ("int", "double", "bool", "tensor")
    },
    **{("torch", name): dtype for name, dtype in _SCRIPT_DTYPES.items()},
}


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return an entry of an archive. Torch never compresses one, so none exceeds the file."""
    entry = archive.getinfo(name)
    if entry.compress_type:
        raise ValueError(f"{name} is compressed")
    return archive.read(entry)


class _ScriptUnpickler(pickle.Unpickler):
    """Unpickler of the modules in a TorchScript archive, whose classes all become inert records."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(_stored(archive, f"{folder}/data.pkl")))
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return Inert
        try:
            return _SCRIPT_TABLE[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Tensor:
        """Return the numbers of a storage, a tensor of one axis."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"{pid!r} is not a storage")
        data = bytearray(_stored(self._archive, f"{self._folder}/data/{key}"))
        if len(data) != count * dtype.itemsize:
            raise ValueError(f"data/{key} does not hold {count} numbers of {dtype}")
        return torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)


def read_script(file: Path) -> dict[str, Tensor]:
    """Return the tensors in a TorchScript archive, which `torch.jit.save` writes, by name.

    Such a file is a program with its weights, and `torch.jit.load` runs parts of it. Only the
    numbers and the names of modules are read here; the code in the archive is not opened.

    Returns:
        Parameters, buffers and other attributes that are tensors, on the CPU. The first two have
        the names that `state_dict` gives them.

    Raises:
        CheckpointError: The file is no TorchScript archive, is damaged, or names something that no
            such archive needs.
        OSError: The file cannot be read.
    """
    with _explained(file), zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        folder = names[0].partition("/")[0] if names else ""
        if f"{folder}/constants.pkl" not in names:
            raise ValueError("it is not a TorchScript archive, which torch.jit.save writes")
        return _named(_ScriptUnpickler(archive, folder).load())


def _named(record: Any, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in record.state.items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, Inert) and isinstance(value.state, dict):
            found |= _named(value, f"{prefix}{name}.")
    return found
