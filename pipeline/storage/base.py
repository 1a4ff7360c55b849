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
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dhr_batch.pipeline.errors import StorageError

# Five digits, and more from shard 100,000 on.
_PART = re.compile(r"part-\d{5,}\.parquet")

log = logging.getLogger(__name__)


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
        return sorted(filter(is_part, self.sizes(table)), key=lambda key: (len(key), key))

    def tables(self) -> list[str]:
        """Names of the tables that have a finished file."""
        return sorted({key.split("/")[0] for key in self.sizes() if is_part(key)})

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
    def entries(self) -> list[str]:
        """Names at the top, of an object store perhaps not all; `/` ends those of folders.

        Hidden names and folders without any file are left out.
        """

    def delete(self, prefix: str, ours: Callable[[str], bool] = lambda key: True) -> None:
        """Delete a key, or those files below a prefix that are `ours`."""
        self.remove(list(filter(ours, self.sizes(prefix) or [prefix])))

    @abstractmethod
    def remove(self, keys: Collection[str]) -> None:
        """Delete files, and folders that are empty then. Some may be gone already."""


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


def is_part(key: str) -> bool:
    """Whether a key has the name of a finished file of a table."""
    return key.count("/") == 1 and _PART.fullmatch(key.rpartition("/")[2]) is not None


def _holds_file(folder: str) -> bool:
    return any(names for _, _, names in os.walk(folder))


def _remove_empty(folder: Path) -> None:
    # Others may hold something, or a worker of a killed driver still writes there.
    with suppress(OSError):
        folder.rmdir()
