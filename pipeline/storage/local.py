"""Storage in a folder of a local or mounted file system."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dhr_batch.pipeline import crash
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.storage.base import Object, Storage, Version, full_disk, log
from dhr_batch.stages.networks.files.regular import opened


class LocalStorage(Storage):
    """A folder. Temporary files have names that start with a dot, and never lie beside tables."""

    def __init__(self, root: Path) -> None:
        # Nothing can be created below a file, and the error of the system does not name the file.
        for folder in (root, *root.parents):
            if folder.exists() and not folder.is_dir():
                raise Refused(str(folder), "it is a file", "give a folder")
        self.root = root
        self.place, self.address = str(root), os.path.realpath(root)

    @property
    def files(self) -> Any:
        from pyarrow import fs

        return fs.SubTreeFileSystem(self.address, fs.LocalFileSystem())

    def free(self) -> int | None:
        return shutil.disk_usage(self.root).free

    def _path(self, key: str) -> Path:
        """Return the path of a key, or of a prefix.

        Raises:
            StorageError: If it lies outside of the place. No key does, but a record that somebody
                has forged may name one.
        """
        if key.startswith("/") or ".." in key.split("/"):
            why = "a record names this file, which lies outside of the place of the record"
            raise StorageError(self.locate(key), why, "do not use files of an unknown origin")
        return self.root / key

    def get(self, key: str) -> Object | None:
        try:
            with opened(self._path(key)) as file:
                status = os.fstat(file.fileno())
                # A changed key is a new file, so the content and the status belong together.
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                return Object(file.read(), _version(status), modified)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def swap(self, key: str, content: bytes, version: Version | None) -> Version | None:
        path = self._path(key)
        if version is not None and not self._is_at(path, version):
            return None
        with self._written(path, content) as temporary:
            try:
                (os.link if version is None else os.replace)(temporary, path)
            except FileExistsError:
                return None
        return _version(path.stat())

    def withdraw(self, key: str, version: Version) -> bool:
        path = self._path(key)
        if not self._is_at(path, version):
            return False
        path.unlink()
        _sync(path.parent)
        return True

    def replace(self, key: str, content: bytes) -> None:
        path = self._path(key)
        with self._written(path, content) as temporary:
            os.replace(temporary, path)

    @staticmethod
    def _is_at(path: Path, version: Version) -> bool:
        return path.exists() and _version(path.stat()) == version

    @staticmethod
    @contextmanager
    def _written(path: Path, content: bytes) -> Iterator[Path]:
        """Provide a temporary file with the content, flushed to disk. The block renames it."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        with full_disk(path.parent):
            make_folder(path.parent)
            try:
                with temporary.open("xb") as file:
                    file.write(content)
                    file.flush()
                    # Otherwise a power loss may leave an empty file under the new name.
                    os.fsync(file.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            _sync(path.parent)

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        path = self._path(key)
        if not path.is_file():
            raise StorageError(str(path), "it does not exist")
        yield path

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self._path(prefix)):
            for name in names:
                path = Path(folder, name)
                # A file may be moved away while the others are listed.
                with suppress(FileNotFoundError):
                    if not name.startswith("."):
                        found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    @contextmanager
    def stage(self, prefix: str) -> Iterator[Path]:
        folder = self._path(prefix)
        make_folder(folder.parent)
        folder.mkdir()
        try:
            with full_disk(folder):
                yield folder
                for path in sorted(folder.iterdir()):
                    _sync(path)
                    crash.at("staged-one-table")
                _sync(folder)
                _sync(folder.parent)
        except BaseException:
            self.delete(prefix)
            raise

    def publish(self, staged: str, final: str) -> bool:
        target = self._path(final)
        make_folder(target.parent)
        try:
            os.replace(self._path(staged), target)
        except FileNotFoundError:
            return False
        _sync(target.parent)
        return True

    def entries(self) -> list[str]:
        found: list[str] = []
        with suppress(FileNotFoundError), os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    found.append(entry.name)
                elif _holds_file(entry.path):
                    found.append(f"{entry.name}/")
        return sorted(found)

    def delete(self, prefix: str, ours: Callable[[str], bool] = lambda key: True) -> None:
        super().delete(prefix, ours)
        self.prune(prefix)

    def prune(self, prefix: str = "") -> None:
        """Delete the folder of a prefix and all folders below it, unless they contain a file."""
        for folder, _, _ in os.walk(self._path(prefix), topdown=False):
            _remove_empty(Path(folder))

    def remove(self, keys: Collection[str]) -> None:
        folders = set()
        for path in list(map(self._path, keys)):
            try:
                path.unlink(missing_ok=True)
            except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
                if not path.is_dir():
                    log.warning("%s is not deleted: %s", path, error)
            folders |= {parent for parent in path.parents if parent.is_relative_to(self.root)}
        for folder in sorted(folders - {self.root}, reverse=True):
            _remove_empty(folder)
        # Otherwise a power loss may undo these deletions, but not later ones.
        for folder in folders:
            if folder.is_dir():
                _sync(folder)


def _version(status: os.stat_result) -> Version:
    numbers = {"file": status.st_ino, "time": status.st_mtime_ns, "size": status.st_size}
    return {name: str(number) for name, number in numbers.items()}


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, unless they exist. They survive a power loss."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _holds_file(folder: str) -> bool:
    # A process that was killed may have left its temporary files, whose names are hidden.
    found = (name for _, _, names in os.walk(folder) for name in names)
    return any(not name.startswith(".") for name in found)


def _remove_empty(folder: Path) -> None:
    # The folder may contain other files, or a worker of a killed driver may still write to it.
    with suppress(OSError):
        folder.rmdir()
