"""The model registry: descriptions of models and their verified cached files.

A model is a YAML file of `dhr_batch.configs/models`, or of `models.d` in the cache folder for
models that users bring. Weights are used only after their sha256 was checked.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import yaml
from pydantic import ValidationError

from dhr_batch.pipeline.models.spec import LocalFile, Model, Package, Shipped
from dhr_batch.pipeline.strict import Strict

State = Literal["ready", "missing", "damaged"]
STAMP = ".verified.json"


class RegistryError(RuntimeError):
    """A model cannot be had; the message says why and what to do."""


class UnknownModel(RegistryError):
    """A name that no description has; the message lists the valid ones."""


class ModelMissing(RegistryError):
    """A model is not in the cache, or not intact; the message names the command that gets it."""


class Status(Strict):
    """A model's line in `models list` and `models verify`; sizes in bytes."""

    name: str
    role: str
    state: State
    size: int
    download: int
    source: str
    licence: str
    commercial_use: str
    default: bool
    description: str
    path: str | None = None
    message: str = ""


def home() -> Path:
    """The cache folder: DHR_BATCH_HOME, else the platform's cache folder plus `dhr-batch`."""
    if chosen := os.environ.get("DHR_BATCH_HOME"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "dhr-batch"


def _folders() -> tuple[Path, Path]:
    return Path(__file__).parent.parent.parent / "configs" / "models", home() / "models.d"


@cache
def _read(file: Path, _mtime_ns: int) -> Model:
    try:
        return Model.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise RegistryError(f"{file} does not describe a model: {error}") from error


def _placed(model: Model) -> Model:
    """A user's file with its whole path: what is relative lies in `files` of the cache."""
    source = model.source
    if not isinstance(source, LocalFile):
        return model
    file = home() / "files" / Path(source.path).expanduser()
    return model.model_copy(update={"source": source.model_copy(update={"path": str(file)})})


def models() -> dict[str, Model]:
    """All descriptions by name; users' own come last and may not reuse a name."""
    found: dict[str, Model] = {}
    for folder in _folders():
        for file in sorted(folder.glob("*.yaml")):
            model = _placed(_read(file, file.stat().st_mtime_ns))
            if model.name in found:
                raise RegistryError(f"{file}: the name {model.name!r} is taken; choose another one")
            found[model.name] = model
    return found


def find(name: str) -> Model:
    """The description of a model. Raises UnknownModel, naming the valid choices."""
    known = models()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnknownModel(f"unknown model {name!r}{hint}; choose from: {', '.join(sorted(known))}")
    return known[name]


def sha256_of(file: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_of(model: Model) -> Path:
    """Where a pulled model lies. Named by its content, so that a new version never meets an old."""
    listed = "\n".join(f"{name} {member.sha256}" for name, member in sorted(model.files().items()))
    return home() / "models" / model.name / hashlib.sha256(listed.encode()).hexdigest()[:12]


def write_stamp(folder: Path, files: Iterable[str]) -> None:
    """Record size and time of files just verified, so that `path` need not read them again."""
    stamp = {name: [s.st_size, s.st_mtime_ns] for name in files for s in [(folder / name).stat()]}
    temporary = folder / f"{STAMP}.{os.getpid()}"
    temporary.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(temporary, folder / STAMP)


def _stamped(folder: Path, files: Iterable[str]) -> bool:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        now = {n: [s.st_size, s.st_mtime_ns] for n in files for s in [(folder / n).stat()]}
    except (OSError, ValueError):
        return False
    return bool(stamp == now)


def _wrong(where: dict[str, Path], model: Model) -> str:
    """Why the files are not the model's; empty if they are. Reads every byte."""
    for name, member in model.files().items():
        file = where[name]
        if not file.is_file():
            return f"{file} is not there"
        if file.stat().st_size != member.size or sha256_of(file) != member.sha256:
            return f"{file} does not have the sha256 {member.sha256} of its description"
    return ""


@cache
def _wrong_once(model_json: str, where: tuple[tuple[str, Path], ...], _times: object) -> str:
    return _wrong(dict(where), Model.model_validate_json(model_json))


def _in_place(model: Model) -> dict[str, Path]:
    source = model.source
    if isinstance(source, Package):
        spec = find_spec(source.module)
        if spec is None or not spec.submodule_search_locations:
            raise ModelMissing(
                f"model {model.name!r} is part of the package {source.package}, which is not "
                f"installed; get it with: pip install {source.package}"
            )
        root = Path(spec.submodule_search_locations[0])
        return {name: root / member.member for name, member in source.members.items()}
    return {name: _folders()[0] / name for name in model.files()}


def _user_file(model: Model, source: LocalFile) -> Path:
    file = Path(source.path)
    if not file.exists():
        way = "correct `source.path`"
        if source.obtain:
            way = (
                f"get it from {source.obtain}, then: "
                f"dhr-batch models pull {model.name} --file {file.name}"
            )
        raise ModelMissing(f"model {model.name!r}: {file} is not there; {way}")
    if source.sha256 and sha256_of(file) != source.sha256:
        raise ModelMissing(f"model {model.name!r}: {file} does not have the sha256 {source.sha256}")
    return file


def _path(model: Model, full: bool) -> Path:
    source = model.source
    if isinstance(source, LocalFile):
        return _user_file(model, source)
    if isinstance(source, (Package, Shipped)):
        where = _in_place(model)
        times = tuple(f.stat().st_mtime_ns if f.is_file() else 0 for f in where.values())
        check = _wrong_once.__wrapped__ if full else _wrong_once
        if reason := check(model.model_dump_json(), tuple(where.items()), times):
            way = f"pip install --force-reinstall {getattr(source, 'package', 'dhr-batch')}"
            raise ModelMissing(f"model {model.name!r} is damaged: {reason}; repair it with: {way}")
        first = next(iter(where.values()))
        return first if len(where) == 1 else first.parent
    folder = folder_of(model)
    command = f"dhr-batch models pull {model.name}"
    if not folder.is_dir():
        raise ModelMissing(
            f"model {model.name!r} is not in {home()}; get it ({model.download / 1e6:.0f} MB) "
            f"with: {command}"
        )
    names = list(model.files())
    if full or not _stamped(folder, names):
        if reason := _wrong({name: folder / name for name in names}, model):
            raise ModelMissing(
                f"model {model.name!r} is damaged: {reason}; repair it with: {command}"
            )
        if os.access(folder, os.W_OK):
            write_stamp(folder, names)
    return folder / names[0] if len(names) == 1 else folder


def path(name: str) -> Path:
    """The verified file of a model, or its folder if it has several files.

    Bytes are read again only if a file's size or time changed since it was verified.
    Raises ModelMissing, whose message names the command that gets the model, and UnknownModel.
    """
    return _path(find(name), full=False)


def _state(error: ModelMissing) -> State:
    return "damaged" if " is damaged: " in str(error) else "missing"


def _status(model: Model, full: bool) -> Status:
    state: State = "ready"
    where: str | None = None
    message = ""
    size = model.size
    try:
        where = str(_path(model, full))
        if isinstance(model.source, LocalFile):
            size = Path(where).stat().st_size
    except ModelMissing as error:
        state, message = _state(error), str(error)
    return Status(
        **model.model_dump(include=set(Status.model_fields) - {"source"}),
        state=state,
        size=size,
        download=model.download,
        source=model.origin,
        path=where,
        message=message,
    )


def listing() -> list[Status]:
    """Every model and whether it can be used, sorted by name."""
    return [_status(model, full=False) for _, model in sorted(models().items())]


def verify(names: Sequence[str] = ()) -> list[Status]:
    """Read every byte of the named models (all of them if none is named) and compare sha256."""
    return [_status(find(name), full=True) for name in names or sorted(models())]


Progress = Callable[[str, int, int], None]
"""Called with what is downloaded, bytes so far and bytes in all."""
