"""Where a run lies: a local folder or a prefix of an object store, behind the same few verbs.

Keys are relative to the run and separated by `/`. Every verb may be repeated, and a kill at any
moment leaves each key old or new, never half written. On an object store nothing is ever renamed:
names appear by conditional writes and server-side copies.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dhr_batch.pipeline import crash

SCHEMES = ("s3", "s3a", "gs", "az")
# Five digits, and more from shard 100,000 on.
_PART = re.compile(r"part-\d{5,}\.parquet")

log = logging.getLogger(__name__)


class Refused(Exception):
    """The run cannot go on as asked; the message says why and what to do. Exit code 2."""


class StorageError(OSError):
    """A place of images or of a run cannot be used now; what is committed stays. Exit code 1."""


# Tells one content of a key from the next, and compares equal for the same one.
Version = dict[str, str]


@dataclass(frozen=True)
class Object:
    """What a key holds. modified: by the clock of the store."""

    content: bytes
    version: Version
    modified: datetime


class Storage(ABC):
    """One run's place. name: its last part; address: what another process opens it with."""

    place: str
    address: str

    @property
    def name(self) -> str:
        return self.address.rstrip("/").rpartition("/")[2]

    def locate(self, key: str) -> str:
        """A key as people and other programs know it."""
        return f"{self.place}/{key}"

    def parts(self, table: str) -> list[str]:
        """Keys of the finished files of a table, in the order of shards."""
        return sorted(filter(_is_part, self.sizes(table)), key=lambda key: (len(key), key))

    def tables(self) -> list[str]:
        """Names of the tables that have a finished file."""
        return sorted({key.split("/")[0] for key in self.sizes() if _is_part(key)})

    @property
    @abstractmethod
    def files(self) -> Any:
        """A `pyarrow.fs.FileSystem` whose paths are keys, for reading."""

    @abstractmethod
    def free(self) -> int | None:
        """Free bytes; None where nobody can know."""

    def create(self, key: str, content: bytes) -> bool:
        """Write a key that does not exist yet; False where another writer had it first."""
        return self.swap(key, content, None) is not None

    def read(self, key: str) -> bytes | None:
        """The content of a key, or None where there is none."""
        there = self.get(key)
        return there.content if there else None

    @abstractmethod
    def get(self, key: str) -> Object | None:
        """A key with its version, or None where there is none."""

    @abstractmethod
    def swap(self, key: str, content: bytes, version: Version | None) -> Version | None:
        """Write a key that is still at `version` (None: absent); None where it is not.

        In a folder, only an absent key is safe from a writer at the same moment; whoever else
        swaps holds the lease, which the kernel gives to one process.
        """

    @abstractmethod
    def withdraw(self, key: str, version: Version) -> bool:
        """Delete a key that is still at `version`, or leave it empty; False where it is not."""

    @abstractmethod
    def replace(self, key: str, content: bytes) -> None:
        """Write a key that readers see either old or new."""

    @abstractmethod
    def local(self, key: str) -> AbstractContextManager[Path]:
        """A file with the content of a key, for reading while the block lasts.

        Raises StorageError where there is none.
        """

    @abstractmethod
    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Key -> bytes of everything below a prefix (whole path parts)."""

    @abstractmethod
    def stage(self, prefix: str) -> AbstractContextManager[Path]:
        """An empty local folder whose files, complete at the end of the block, get `prefix`/NAME.

        After an exception none of them is promised to be there, and no scratch is left. Raises
        StorageError where the disk is full.
        """

    @abstractmethod
    def publish(self, staged: str, final: str) -> bool:
        """Give a staged file its final name; False where there is no such staged file."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Delete a key, or everything below a prefix."""


def connect(place: str | Path | Storage) -> Storage:
    """The storage of a run: a folder, or a URL such as `s3://bucket/prefix`.

    Touches nothing. Raises Refused for what is neither.
    """
    if isinstance(place, Storage):
        return place
    scheme, separator, rest = str(place).partition("://")
    if not separator:
        return LocalStorage(Path(place).expanduser())
    if scheme == "file":
        return LocalStorage(Path(rest))
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        raise Refused(f"{place} is neither a folder nor the URL of an object store ({schemes})")
    from dhr_batch.pipeline.object_storage import ObjectStorage

    return ObjectStorage(str(place))


@contextmanager
def full_disk(where: str | Path) -> Iterator[None]:
    """A full disk as a StorageError that names the folder; all else passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f"no space left on the disk of {where}: free some and start the same command again; "
            "finished shards are kept"
        ) from error


class LocalStorage(Storage):
    """A folder. Temporary names start with a dot, and table folders never hold any."""

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise Refused(f"{root} is a file: choose a folder with --out")
        self.root = root
        self.place, self.address = str(root), str(root.resolve())

    @property
    def files(self) -> Any:
        from pyarrow import fs

        return fs.SubTreeFileSystem(self.address, fs.LocalFileSystem())

    def free(self) -> int | None:
        return shutil.disk_usage(self.root).free

    def get(self, key: str) -> Object | None:
        try:
            with (self.root / key).open("rb") as file:
                found = os.fstat(file.fileno())
                # A changed key is a new file, so that these are of one content.
                modified = datetime.fromtimestamp(found.st_mtime, UTC)
                return Object(file.read(), _version(found), modified)
        except FileNotFoundError:
            return None

    def swap(self, key: str, content: bytes, version: Version | None) -> Version | None:
        path = self.root / key
        if version is not None and not self._is_at(path, version):
            return None
        with self._written(path, content) as temporary:
            try:
                (os.link if version is None else os.replace)(temporary, path)
            except FileExistsError:
                return None
        return _version(path.stat())

    def withdraw(self, key: str, version: Version) -> bool:
        path = self.root / key
        if not self._is_at(path, version):
            return False
        path.unlink()
        _sync(path.parent)
        return True

    def replace(self, key: str, content: bytes) -> None:
        path = self.root / key
        with self._written(path, content) as temporary:
            os.replace(temporary, path)

    @staticmethod
    def _is_at(path: Path, version: Version) -> bool:
        return path.exists() and _version(path.stat()) == version

    @staticmethod
    @contextmanager
    def _written(path: Path, content: bytes) -> Iterator[Path]:
        """A durable file with the content, to be given its name in the block."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        with full_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(content)
                    file.flush()
                    # Else a power loss may leave the new name with no content.
                    os.fsync(file.fileno())
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)
            _sync(path.parent)

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        path = self.root / key
        if not path.is_file():
            raise StorageError(f"{path} does not exist")
        yield path

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                path = Path(folder, name)
                # A file may be moved away while the others are listed.
                with suppress(FileNotFoundError):
                    if not name.startswith("."):
                        found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return found

    @contextmanager
    def stage(self, prefix: str) -> Iterator[Path]:
        folder = self.root / prefix
        folder.mkdir(parents=True)
        try:
            with full_disk(folder):
                yield folder
                for path in sorted(folder.iterdir()):
                    _sync(path)
                    crash.at("staged-one-table")
                _sync(folder)
        except BaseException:
            self.delete(prefix)
            raise

    def publish(self, staged: str, final: str) -> bool:
        target = self.root / final
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(self.root / staged, target)
        except FileNotFoundError:
            return False
        _sync(target.parent)
        return True

    def delete(self, prefix: str) -> None:
        path = self.root / prefix
        if path.is_dir():
            shutil.rmtree(path, onerror=_not_deleted)
        else:
            path.unlink(missing_ok=True)


def _is_part(key: str) -> bool:
    return key.count("/") == 1 and _PART.fullmatch(key.rpartition("/")[2]) is not None


def _version(found: os.stat_result) -> Version:
    return {"file": f"{found.st_ino}", "time": f"{found.st_mtime_ns}", "size": f"{found.st_size}"}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _not_deleted(_function: object, path: str, reason: Any) -> None:
    # A worker of a killed driver may still write into its own staging folder; the next start
    # deletes what is left.
    if not isinstance(reason[1], FileNotFoundError):
        log.warning("%s is not deleted yet: %s", path, reason[1])
