"""Read published checkpoints without running code that they contain.

A pickle is a program: its loader imports and calls whatever the file names. Nothing is imported by
name here. The names that a StyleGAN2 checkpoint or a TorchScript archive needs are replaced by a
few functions, which create plain containers, tensors and inert records (`inert_pickles`). Other
names are errors, and no option turns this check off.
"""

from __future__ import annotations

import errno
import io
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from dhr_batch.stages.networks.files.inert_pickles import (
    PLAIN,
    SCRIPT,
    Damaged,
    Forbidden,
    Inert,
    Unpickler,
    record,
)
from dhr_batch.stages.networks.files.regular import opened

_ZIP = b"PK\x03\x04"
# Files of torch before version 1.6 are pickles of this number, of a version and of facts about the
# machine, then of the content; the numbers of the tensors follow.
_TORCH_MAGIC, _TORCH_VERSION = 0x1950A86A20F9469CFC6C, 1001
# Modules of a network, counted as often as their parents name them.
MOST_MODULES, MOST_DEPTH = 20_000, 64


class CheckpointError(ValueError):
    """A file cannot be read, or names something that no checkpoint needs."""

    exit_code = 2


def read(file: Path, mapped: bool = False) -> Any:
    """Return the content of a file of torch, or of a pickle as NVIDIA publishes them.

    The format is recognised by the content and not by the name of the file.

    Args:
        file: The file.
        mapped: Read tensors from the disk only when they are used, for callers that need a part of
            a large file and copy it.

    Returns:
        Containers and tensors on the CPU, with `Inert` records in place of objects.

    Raises:
        CheckpointError: The file is damaged, or names something that no checkpoint needs.
        OSError: The file cannot be read.
    """
    with opened(file) as stream, _explained(file):
        return _File(stream, mapped).content()


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn the errors that a damaged or hostile file causes into `CheckpointError`."""
    try:
        yield
    except Forbidden as error:
        raise CheckpointError(f"{file} is refused: {_reason(str(error))}") from error
    except Exception as error:
        # Places in a damaged archive may lie before its beginning.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{file} is damaged or not a checkpoint: {reason}") from error


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


class _File:
    """A file of torch or a pickle, and files of torch inside of it.

    Args:
        stream: The file.
        mapped: As in `read`.
    """

    def __init__(self, stream: BinaryIO, mapped: bool = False) -> None:
        self.stream, self.mapped = stream, mapped
        self.size = stream.seek(0, io.SEEK_END)
        # What is taken out of a file is not larger than the file, unless parts are taken twice.
        self.left = self.size
        stream.seek(0)

    @cached_property
    def pages(self) -> mmap.mmap:
        """The file, of which parts are read when they are used. Changes stay in memory."""
        return mmap.mmap(self.stream.fileno(), 0, access=mmap.ACCESS_COPY)

    def take(self, count: int) -> int:
        """Count bytes that are taken out of the file."""
        self.left -= count
        if count < 0 or self.left < 0:
            raise Damaged(f"it unpacks to more than its {self.size} bytes")
        return count

    def content(self) -> Any:
        if self.stream.read(len(_ZIP)) == _ZIP:
            return self._archive()
        self.stream.seek(0)
        source = self.stream
        if not isinstance(source, io.BytesIO):
            source = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)  # type: ignore[assignment]
        found = _Stream(source, self).load()
        return self._legacy(source) if found == _TORCH_MAGIC else found

    def _archive(self) -> Any:
        with zipfile.ZipFile(self.stream) as archive:
            names = archive.namelist()
            folder = names[0].partition("/")[0]
            if f"{folder}/constants.pkl" in names:
                raise Damaged("it is a TorchScript archive, not a file of weights")
            order = f"{folder}/byteorder"
            if order in names and stored(archive, order) != b"little":
                raise Damaged("its numbers are big-endian")
            try:
                return _Archive(archive, folder, self, PLAIN, records=True).load()
            except (Damaged, Forbidden):
                raise
            except Exception as error:
                raise Damaged(f"it holds more than weights, or is cut: {error}") from error

    def _legacy(self, source: Any) -> Any:
        if _Stream(source, self).load() != _TORCH_VERSION:
            raise Damaged("it was written by another version of torch")
        if not dict(_Stream(source, self).load()).get("little_endian"):
            raise Damaged("its numbers are big-endian")
        reader = _Legacy(source, self)
        found = reader.load()
        for name in list(_Stream(source, self).load()):
            storage = reader.storages.pop(name)
            count = int.from_bytes(source.read(8), "little")
            data = source.read(storage.nbytes)
            if count != storage.numel() or len(data) != storage.nbytes:
                raise Damaged(f"it does not hold the {storage.numel()} numbers of {name}")
            if count:
                storage.copy_(torch.frombuffer(bytearray(data), dtype=storage.dtype))
        if reader.storages:
            raise Damaged(f"it does not hold the numbers of {next(iter(reader.storages))}")
        return found


class _Stream(Unpickler):
    """Unpickler of a part of a file, which may have files of torch inside of it."""

    def __init__(self, source: Any, file: _File) -> None:
        super().__init__(source, PLAIN, records=True)
        self._file = file

    def nested(self, data: bytes) -> Any:
        self._file.take(len(data))
        return _File(io.BytesIO(data)).content()


class _Legacy(_Stream):
    """Unpickler of the content of a file of torch before version 1.6."""

    def __init__(self, source: Any, file: _File) -> None:
        super().__init__(source, file)
        self.storages: dict[Any, Tensor] = {}

    def persistent_load(self, pid: Any) -> Any:
        # Source code of a module, which is of no use.
        return pid[1] if pid[0] == "module" else super().persistent_load(pid)

    def storage(self, dtype: torch.dtype, name: Any, count: int, view: Any = None) -> Tensor:
        if name not in self.storages:
            self._file.take(count * dtype.itemsize)
            self.storages[name] = torch.empty(count, dtype=dtype)
        found = self.storages[name]
        return found if view is None else found[view[1] : view[1] + view[2]]


def stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return an entry of an archive. Torch never compresses one, so none exceeds the file."""
    entry = archive.getinfo(name)
    if entry.compress_type:
        raise Damaged(f"{name} is compressed")
    return archive.read(entry)


class _Archive(Unpickler):
    """Unpickler of the content of an archive that torch wrote."""

    def __init__(
        self, archive: zipfile.ZipFile, folder: str, file: _File, table: Any, records: bool
    ) -> None:
        super().__init__(io.BytesIO(stored(archive, f"{folder}/data.pkl")), table, records)
        self._archive, self._folder, self._file = archive, folder, file
        self._storages: dict[Any, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return record(module, name)
        return super().find_class(module, name)

    def storage(self, dtype: torch.dtype, name: Any, count: int, view: Any = None) -> Tensor:
        if name not in self._storages:
            self._storages[name] = self._read(f"{self._folder}/data/{name}", dtype)
        found = self._storages[name]
        if found.dtype != dtype or found.numel() != count:
            raise Damaged(f"data/{name} does not hold {count} numbers of {dtype}")
        return found

    def _read(self, name: str, dtype: torch.dtype) -> Tensor:
        entry = self._archive.getinfo(name)
        count, rest = divmod(self._file.take(entry.file_size), dtype.itemsize)
        if rest:
            key = name.removeprefix(f"{self._folder}/")
            raise Damaged(f"{key} does not hold {count} numbers of {dtype}")
        if not count:
            return torch.empty(0, dtype=dtype)
        if self._file.mapped and not entry.compress_type:
            return self._mapped(entry, dtype, count)
        return torch.frombuffer(bytearray(stored(self._archive, name)), dtype=dtype)

    def _mapped(self, entry: zipfile.ZipInfo, dtype: torch.dtype, count: int) -> Tensor:
        stream = self._file.stream
        stream.seek(entry.header_offset + 26)
        start = stream.tell() + 4
        start += sum(int.from_bytes(stream.read(2), "little") for _ in range(2))
        if start + entry.file_size > self._file.size:
            raise Damaged(f"{entry.filename} ends behind the file")
        return torch.frombuffer(self._file.pages, dtype=dtype, count=count, offset=start)


def array(value: Any) -> np.ndarray:
    """Return the array of numbers that `read` returned as an inert record.

    Raises:
        CheckpointError: The record is not an array of numbers.
    """
    try:
        if value.state is None:  # Since protocol 5: data, type, shape, order of axes.
            data, kind, shape, order = value.arguments
        else:  # Version, shape, type, whether the first axis is contiguous, data.
            _, shape, kind, columns, data = value.state
            order = "F" if columns else "C"
        name, byte_order = kind.arguments[0], kind.state[1]
        if not re.fullmatch("[fiu][1248]|b1", name):
            raise ValueError(f"it has elements of type {name}")
        # Big-endian numbers are said so; "|" is for single bytes.
        number = np.dtype(("<" if byte_order == "|" else byte_order) + name)
        return np.frombuffer(data, number).reshape(shape, order=order)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the content is not an array of numbers: {error}") from error


def fields(value: Any) -> Mapping[str, Any]:
    """Return the settings in a dictionary, or in the inert record of a Namespace or the like."""
    found = value.state if isinstance(value, Inert) else value
    return found if isinstance(found, Mapping) else {}


def state_dict(module: Any) -> dict[str, Tensor]:
    """Return the parameters and buffers of a network that `read` returned as an inert record.

    Raises:
        CheckpointError: The record is not a pickled network.
    """
    try:
        return _tensors(_parts_of_module(module), _parts_of_module)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the content is not a pickled network: {error}") from error


def _parts_of_module(module: Any) -> dict[Any, Any]:
    parts = fields(module) if fields(module) else module.arguments[0]["state"]
    own = {**parts["_parameters"], **parts["_buffers"]}
    found = {k: v for k, v in own.items() if isinstance(v, Tensor)}
    return found | {k: v for k, v in parts["_modules"].items() if v is not None}


def _parts_of_script(module: Any) -> dict[Any, Any]:
    parts = fields(module) if isinstance(module, Inert) else {}
    return {k: v for k, v in parts.items() if isinstance(v, (Tensor, Inert))}


def _tensors(
    parts: Mapping[Any, Any], parts_of: Callable[[Any], dict[Any, Any]]
) -> dict[str, Tensor]:
    """Return the tensors in a tree of modules by their dotted names."""
    found: dict[str, Tensor] = {}
    visited = 0
    queue = [("", 0, parts)]
    while queue:
        prefix, depth, parts = queue.pop()
        visited += 1
        if visited > MOST_MODULES or depth > MOST_DEPTH:
            raise ValueError(f"it has more than {MOST_MODULES} modules or {MOST_DEPTH} levels")
        for name, value in parts.items():
            if not isinstance(name, str):
                raise ValueError(f"a part of it has the name {name!r}")
            if isinstance(value, Tensor):
                found[prefix + name] = value
            else:
                queue.append((f"{prefix}{name}.", depth + 1, parts_of(value)))
    return found


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
    with opened(file) as stream, _explained(file), zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        folder = names[0].partition("/")[0] if names else ""
        if f"{folder}/constants.pkl" not in names:
            raise ValueError("it is not a TorchScript archive, which torch.jit.save writes")
        network = _Archive(archive, folder, _File(stream), SCRIPT, records=False).load()
        return _tensors(_parts_of_script(network), _parts_of_script)
