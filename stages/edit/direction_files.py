"""Read edit directions from files and from the shipped sets, which are chosen by name."""

from __future__ import annotations

import copy
import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from dhr_batch.stages import yaml_files
from dhr_batch.stages.edit import array_files
from dhr_batch.stages.registry import InvalidInput

STYLE_WIDTH = 512
# Rows of the published code, that of StyleGAN2 at 1024 px.
PUBLISHED_ROWS = 18
FITS = "[512], [1, 512], [L, 512] or [1, L, 512]"
# Above the largest generator, with 23 rows.
MOST_ROWS = 64
# Exceptions for a damaged file.
DAMAGED = (OSError, ValueError)
LENGTH_UNIT = "the length of the vector in the file"


class DirectionError(InvalidInput):
    """A direction cannot be found or used. The message names it and what is expected."""


@dataclass(frozen=True, slots=True)
class Direction:
    """An edit direction.

    Attributes:
        name: Name of the edit.
        array: float32 [512] for all rows alike, or [L, 512] row by row.
        sha256: Checksum of the bytes of the array, which is independent of the file format.
        unit: What strength 1 means.
        source: The file that it comes from.
    """

    name: str
    array: np.ndarray
    sha256: str
    unit: str
    source: str


def digest(array: np.ndarray) -> str:
    """Return the sha256 of a direction as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


def from_array(name: str, array: Any, unit: str, source: str) -> Direction:
    """Return a direction from an array after checking it.

    Args:
        name: Name of the edit.
        array: Numbers of shape [512], [1, 512], [L, 512] or [1, L, 512].
        unit: What strength 1 means.
        source: The file, for messages.

    Raises:
        DirectionError: The array has another shape, is not finite or is zero everywhere.

    Example:
        >>> from_array("mine", np.ones((1, 1, 512)), "1", "mine.npy").array.shape
        (512,)
    """
    array = np.asarray(array)
    shape = list(array.shape)
    _check_shape(shape, array.dtype, source)
    array = array[0] if array.ndim == 3 else array
    array = array[0] if array.shape == (1, STYLE_WIDTH) else array
    with np.errstate(over="ignore"):  # Such values are refused below.
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise DirectionError(
            f"{source}: the direction of shape {shape} has values that are not finite",
            "compute it again",
        )
    if not array.any():
        raise DirectionError(
            f"{source}: the direction of shape {shape} is zero everywhere", "compute it again"
        )
    return Direction(name, array, digest(array), unit, source)


def _check_shape(shape: Sequence[int], kind: np.dtype, source: str) -> None:
    ndim = len(shape)
    if kind.kind not in "fiu" or not 1 <= ndim <= 3 or shape[-1] != STYLE_WIDTH:
        raise DirectionError(
            f"{source}: an array of {kind} and shape {list(shape)} is not a direction",
            f"give numbers of shape {FITS}",
        )
    if ndim == 3 and shape[0] != 1:
        raise DirectionError(
            f"{source}: shape {list(shape)} holds {shape[0]} directions",
            f"save one per file, as {FITS}",
        )
    if ndim > 1 and not 1 <= shape[-2] <= MOST_ROWS:
        raise DirectionError(
            f"{source}: an array of shape {list(shape)} is not a direction, as no generator has "
            f"{shape[-2]} rows",
            f"give numbers of shape {FITS}",
        )


# ------------------------------------------------------------------------------- files


def _read_npy(path: Path, key: str) -> Any:
    return array_files.read_npy(path, lambda shape, kind: _check_shape(shape, kind, str(path)))


def _read_npz(path: Path, key: str) -> Any:
    names = array_files.names(path)
    if not key and len(names) != 1:
        raise DirectionError(
            f"{path}: the file holds {len(names)} arrays",
            f"choose one as {path}#NAME, with NAME one of {_listed(names)}",
        )
    if key and key not in names:
        raise DirectionError(f"{path}: no array {key!r}", f"choose from: {_listed(names)}")
    name = key or names[0]
    source = f"{path}#{name}" if key else str(path)
    return array_files.read_npz(path, name, lambda s, kind: _check_shape(s, kind, source))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_ROWS} more" if len(names) > MOST_ROWS else ""
    return ", ".join(names[:MOST_ROWS]) + more


def _read_torch(path: Path, key: str) -> Any:
    import torch

    from dhr_batch.stages.networks.files import checkpoints

    value = checkpoints.read(path, mapped=True)
    if isinstance(value, checkpoints.Inert):
        # A numpy array, or an object that holds no numbers at all.
        with suppress(checkpoints.CheckpointError):
            return checkpoints.array(value)
    if isinstance(value, dict) and "comp" in value:
        raise DirectionError(
            f"{path}: the file holds principal components",
            f"choose one as {{ganspace: {path}, component: 54, rows: [7, 8], strengths: [20]}}",
        )
    if not isinstance(value, torch.Tensor):
        raise DirectionError(
            f"{path}: the file holds a {type(value).__name__}",
            f"save a tensor of shape {FITS}",
        )
    is_float = value.is_floating_point()
    _check_shape(value.shape, np.dtype("f4") if is_float else value.numpy().dtype, str(path))
    return (value.float() if is_float else value).numpy().copy()


READERS: dict[str, Callable[[Path, str], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def read(path: str) -> Direction:
    """Read the direction in a .npy, .npz or .pt file.

    Args:
        path: The file; `FILE.npz#NAME` selects one of several arrays. A .pt file holds a tensor.

    Raises:
        DirectionError: The file is missing or damaged, or its content is not a direction.
    """
    text, _, key = path.partition("#") if ".npz#" in path.lower() else (path, "", "")
    file = Path(os.path.expanduser(text))
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise DirectionError(f"{path}: not a direction file", f"supported are {', '.join(READERS)}")
    if not file.is_file():
        raise DirectionError(f"{path}: the file does not exist", "check the path")
    try:
        array = reader(file, key)
    except DirectionError:
        raise
    except DAMAGED as error:
        raise DirectionError(
            f"{path}: cannot be read as {file.suffix}: {error}", "save the file again"
        ) from error
    return from_array(key or file.stem, array, LENGTH_UNIT, path)


def made_on(path: str) -> tuple[str, dict[str, str]] | None:
    """Return the generator that an .npz file was made on, as the .yaml file beside it states.

    Returns:
        Its name, and the checksums of its weights by model; None if no such file states it.
    """
    beside = Path(os.path.expanduser(path.partition("#")[0])).with_suffix(".yaml")
    try:
        about = describe_set(beside)
    except (OSError, DirectionError):
        return None
    # The samples that `edits fit` describes were made on it. Other commands state it as such.
    places = (about, about.get("samples"))
    stated = next((p for p in places if isinstance(p, dict) and "generator" in p), None)
    weights = stated.get("generator_weights") if stated else None
    found = weights if isinstance(weights, dict) else {}
    return (str(stated["generator"]), found) if stated else None


# ------------------------------------------------------------------------------- shipped sets


def sets_folder() -> Path:
    """Return the folder of the shipped sets, each a .yaml file beside an .npz file."""
    return Path(str(resources.files("dhr_batch.configs"))) / "edits"


def describe_set(file: Path) -> dict[str, Any]:
    """Return the content of the YAML file of a set: `directions` in an .npz file, or `edits`.

    Raises:
        DirectionError: The file does not describe a set.
    """
    now = file.stat()
    return copy.deepcopy(_described(file, now.st_mtime_ns, now.st_size))


@lru_cache(maxsize=32)
def _described(file: Path, _mtime_ns: int, _size: int) -> dict[str, Any]:
    # A plan looks names up many times, and the largest set takes 20 ms to parse.
    try:
        data = yaml_files.read(file)
    except yaml_files.InvalidYaml as error:
        raise DirectionError(f"{file}: {error.reason}", error.way_out) from error
    if not isinstance(data, dict) or not any(
        isinstance(data.get(key), dict) for key in ("directions", "edits")
    ):
        raise DirectionError(
            f"{file}: not a set of directions, because 'directions' or 'edits' is missing",
            "correct the file, or remove it",
        )
    return data


def shipped() -> dict[str, Path]:
    """Return the name of every shipped direction with the YAML file that describes it."""
    return _named("directions")


def shipped_edits() -> dict[str, Path]:
    """Return the name of every other shipped edit with the YAML file that has its settings."""
    return _named("edits")


def _named(key: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in yaml_files.in_folder(sets_folder()):
        for name in describe_set(file).get(key, ()):
            if name in found:
                raise DirectionError(
                    f"{file}: direction {name!r} is also in {found[name]}", "rename one of them"
                )
            found[name] = file
    return found


def settings_of(choice: str) -> dict[str, Any] | None:
    """Return the settings of a shipped edit, or those in a YAML file, with a label.

    Args:
        choice: A name, or a .yaml file with the settings of one edit.

    Returns:
        The settings, or None if the choice is neither. Of a shipped direction that states its usual
        strengths, these and the name.

    Raises:
        DirectionError: The file does not exist or has no settings.
    """
    file = Path(os.path.expanduser(choice))
    if file.suffix.lower() not in (".yaml", ".yml"):
        if (found := shipped_edits().get(choice)) is not None:
            return {"label": choice} | describe_set(found)["edits"][choice]
        found = shipped().get(choice)
        about = {} if found is None else describe_set(found)["directions"][choice]
        strengths = about.get("strengths")
        return {"direction": choice, "strengths": strengths} if strengths else None
    try:
        settings = yaml_files.read(file)
    except (OSError, yaml_files.InvalidYaml) as error:
        reason = getattr(error, "reason", str(error))
        raise DirectionError(
            f"{choice}: it cannot be read as settings of an edit: {reason}",
            getattr(error, "way_out", "check the path"),
        ) from error
    if not isinstance(settings, dict):
        raise DirectionError(
            f"{choice}: it has no settings of an edit", "write for example `direction: smile`"
        )
    return {"label": file.stem} | settings


def read_shipped(name: str, file: Path) -> Direction:
    """Read the direction `name` of the set that `file` describes.

    Raises:
        DirectionError: Its checksum is not the stated one.
    """
    about = describe_set(file)["directions"][name]
    archive = file.with_suffix(".npz")
    array = _read_npz(archive, name)
    direction = from_array(name, array, str(about["unit"]), f"{archive.name}#{name}")
    if direction.sha256 != about["sha256"]:
        raise DirectionError(
            f"{archive}: {name!r} is not the array that {file.name} describes",
            "install the package again, or write both files again",
        )
    return direction


def resolve(choice: str) -> Direction:
    """Return a direction by its shipped name or by path.

    Raises:
        DirectionError: There is no such direction. The message lists the shipped ones.
    """
    available = shipped()
    if choice in available:
        return read_shipped(choice, available[choice])
    if "/" in choice or "\\" in choice or ".npz#" in choice or Path(choice).suffix in READERS:
        return read(choice)
    names = sorted([*available, *shipped_edits()])
    close = difflib.get_close_matches(choice, names, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise DirectionError(
        f"unknown direction {choice!r}{hint}",
        f"choose from: {', '.join(names) or '(none shipped)'}; "
        f"or give a file ({', '.join(READERS)})",
    )
