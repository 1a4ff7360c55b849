"""Read .npy and .npz files that others wrote: shapes are checked before memory is taken."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from dhr_batch.stages.networks.files.regular import opened

# Called with the shape and the type of the numbers before they are read; raises if they are wrong.
Check = Callable[[tuple[int, ...], np.dtype], None]
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npy(path: Path, check: Check) -> np.ndarray:
    """Return the array in a .npy file.

    Raises:
        ValueError: The file is damaged or holds no numbers.
        OSError: It cannot be read.
    """
    with opened(path) as stream, _explained():
        return _array(stream, check)


def names(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz file.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    with opened(path) as stream, _explained(), zipfile.ZipFile(stream) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_npz(path: Path, name: str, check: Check) -> np.ndarray:
    """Return an array in an .npz file. Raises what `names` does, also if there is no such array."""
    with opened(path) as stream, _explained(), zipfile.ZipFile(stream) as archive:
        stored = archive.namelist()
        member = next((n for n in (f"{name}.npy", name) if n in stored), None)
        if member is None:
            raise ValueError(f"it has no array {name!r}")
        with archive.open(member) as content:
            return _array(content, check)


def _array(stream: IO[bytes], check: Check) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format is not for arrays of numbers")
    shape, by_columns, kind = _HEADERS[version](stream)
    check(shape, kind)
    if kind.kind not in "biufc":
        raise ValueError(f"it holds {kind}, not numbers")
    size = math.prod(shape) * kind.itemsize
    data = stream.read(size)
    if len(data) != size:
        raise ValueError(f"it ends before the {size} bytes of shape {list(shape)}")
    return np.frombuffer(bytearray(data), kind).reshape(shape, order="F" if by_columns else "C")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the errors of the parsers for damaged files, which are many, into ValueError."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from error
