"""Where edit directions come from: files, and the shipped sets that are chosen by name."""

from __future__ import annotations

import difflib
import hashlib
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

STYLE_WIDTH = 512
FITS = "[512], [1, 512], [L, 512] or [1, L, 512]"
# How numpy and torch report a file that is not of its format, depending on its first bytes.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    LookupError,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)
LENGTH_UNIT = "the length of the vector in the file"


class DirectionError(ValueError):
    """A direction that cannot be found or used; the message names it and says what fits."""


@dataclass(frozen=True, slots=True)
class Direction:
    """An edit direction. array: float32 [512] (all rows) or [L, 512] (row by row).

    sha256: of the array's bytes, so one direction has one digest in every file format.
    unit: what strength 1 means. source: the file it came from.
    """

    name: str
    array: np.ndarray
    sha256: str
    unit: str
    source: str


def digest(array: np.ndarray) -> str:
    """sha256 of a direction's float32 little-endian bytes."""
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


def from_array(name: str, array: Any, unit: str, source: str) -> Direction:
    """A checked direction: drops a leading axis of one image, converts to float32.

    Raises DirectionError for a shape other than [512], [1, 512], [L, 512], [1, L, 512], for
    numbers that are not finite, and for a vector of zeros.
    """
    array = np.asarray(array)
    shape = list(array.shape)
    if array.dtype.kind not in "fiu" or not 1 <= array.ndim <= 3 or shape[-1] != STYLE_WIDTH:
        raise DirectionError(
            f"{source}: {array.dtype} of shape {shape} is no direction; "
            f"expected numbers of shape {FITS}"
        )
    if array.ndim == 3 and shape[0] != 1:
        raise DirectionError(
            f"{source}: shape {shape} holds {shape[0]} directions; save one a file, of shape {FITS}"
        )
    array = array[0] if array.ndim == 3 else array
    array = array[0] if array.shape == (1, STYLE_WIDTH) else array
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise DirectionError(
            f"{source}: the direction of shape {shape} has values that are not finite"
        )
    if not array.any():
        raise DirectionError(f"{source}: the direction of shape {shape} is zero everywhere")
    return Direction(name, array, digest(array), unit, source)


# ------------------------------------------------------------------------------- files


def _read_npy(path: Path, key: str) -> Any:
    return np.load(path, allow_pickle=False)


def _read_npz(path: Path, key: str) -> Any:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        if not key and len(names) != 1:
            raise DirectionError(
                f"{path}: holds {len(names)} arrays; write {path}#NAME, "
                f"NAME one of {', '.join(names)}"
            )
        if key and key not in names:
            raise DirectionError(f"{path}: holds no array {key!r}, only {', '.join(names)}")
        return archive[key or names[0]]


def _read_torch(path: Path, key: str) -> Any:
    import torch

    value = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(value, torch.Tensor):
        raise DirectionError(
            f"{path}: holds a {type(value).__name__}, not a tensor of shape {FITS}"
        )
    return value.detach().float().numpy() if value.is_floating_point() else value.detach().numpy()


READERS: dict[str, Callable[[Path, str], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def read(path: str) -> Direction:
    """The direction in a .npy, .pt (a tensor) or .npz file; `FILE.npz#NAME` picks one of several.

    Raises DirectionError naming the file when it is missing, unreadable or of another shape.
    """
    text, _, key = path.partition("#") if ".npz#" in path.lower() else (path, "", "")
    file = Path(text).expanduser()
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DirectionError(f"{path}: not a direction file; readable are {', '.join(READERS)}")
    if not file.is_file():
        raise DirectionError(f"{path}: no such file")
    try:
        array = reader(file, key)
    except DirectionError:
        raise
    except DAMAGED as error:
        raise DirectionError(f"{path}: cannot be read as {file.suffix}: {error}") from error
    return from_array(key or file.stem, array, LENGTH_UNIT, path)


# ------------------------------------------------------------------------------- shipped sets


def sets_folder() -> Path:
    """The folder of the shipped sets (a .yaml beside its .npz)."""
    return Path(str(resources.files("dhr_batch.configs"))) / "edits"


def describe_set(file: Path) -> dict[str, Any]:
    """The YAML of a set. Raises DirectionError when it does not describe one."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not isinstance(data.get("directions"), dict):
        raise DirectionError(f"{file}: not a set of directions (no 'directions' in it)")
    return data


def shipped() -> dict[str, Path]:
    """Name of every shipped direction -> the YAML that describes it."""
    found: dict[str, Path] = {}
    for file in sorted(sets_folder().glob("*.yaml")):
        for name in describe_set(file)["directions"]:
            if name in found:
                raise DirectionError(f"{file}: direction {name!r} is already in {found[name]}")
            found[name] = file
    return found


def read_shipped(name: str, file: Path) -> Direction:
    """The direction `name` of the set described by `file`; its digest must be the stated one."""
    about = describe_set(file)["directions"][name]
    archive = file.with_suffix(".npz")
    array = _read_npz(archive, name)
    direction = from_array(name, array, str(about["unit"]), f"{archive.name}#{name}")
    if direction.sha256 != about["sha256"]:
        raise DirectionError(f"{archive}: {name!r} is not the array that {file.name} describes")
    return direction


def resolve(choice: str) -> Direction:
    """A direction by its shipped name, or by path.

    Raises DirectionError for an unknown name, listing the known ones.
    """
    known = shipped()
    if choice in known:
        return read_shipped(choice, known[choice])
    if "/" in choice or "\\" in choice or ".npz#" in choice or Path(choice).suffix in READERS:
        return read(choice)
    close = difflib.get_close_matches(choice, known, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise DirectionError(
        f"unknown direction {choice!r}{hint}; "
        f"choose from: {', '.join(sorted(known)) or '(none shipped)'}; "
        f"or name a file ({', '.join(READERS)})"
    )
