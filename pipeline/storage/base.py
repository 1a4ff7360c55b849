"""The interface to the place of a run: a local folder or a prefix of an object store.

Keys are paths relative to the run, separated by `/`. Every operation may be repeated, and a kill at
any moment leaves each key with its old or its new content, never with a part of it. Object stores
have no atomic rename, so there the operations use conditional writes and server-side copies.
"""

from __future__ import annotations

import errno
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dhr_batch.pipeline.errors import StorageError

# Numbers have five digits, or more from shard 100,000 on.
_PART = re.compile(r"part-\d{5,}\.parquet")

log = logging.getLogger(__name__)


# Identifies the content of a key: two versions are equal if and only if the content is the same.
Version = dict[str, str]


@dataclass(frozen=True)
class Object:
    """The content of a key.

    Attributes:
        content: All bytes.
        version: The version of the content.
        modified: The time of the last write, by the clock of the store.
    """

    content: bytes
    version: Version
    modified: datetime


class Storage(ABC):
    """The place of one run.

    Attributes:
        place: The folder or URL as the user wrote it, for messages.
        address: The absolute path or URL, with which another process can open the place.
    """

    place: str
    address: str

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.address.rstrip("/").rpartition("/")[2]

    def locate(self, key: str) -> str:
        """Return the path or URL of a key."""
        return f"{self.place}/{key}"

    def tables(self) -> list[str]:
        """Return the names of the tables that have at least one finished file."""
        return sorted({key.split("/")[0] for key in self.sizes() if is_part(key)})

    @property
    @abstractmethod
    def files(self) -> Any:
        """A `pyarrow.fs.FileSystem` whose paths are keys, for reading."""

    @abstractmethod
    def free(self) -> int | None:
        """Return the number of free bytes, or None if it is unknown."""

    def create(self, key: str, content: bytes) -> bool:
        """Write a key that does not exist yet. Returns False if it exists."""
        return self.swap(key, content, None) is not None

    def read(self, key: str) -> bytes | None:
        """Return the content of a key, or None if the key does not exist."""
        found = self.get(key)
        return found.content if found else None

    @abstractmethod
    def get(self, key: str) -> Object | None:
        """Return the content and version of a key, or None if the key does not exist."""

    @abstractmethod
    def swap(self, key: str, content: bytes, version: Version | None) -> Version | None:
        """Write a key if it still has the given version (compare and swap).

        In a local folder, only writing an absent key is atomic. Callers that swap an existing key
        there must hold the lease, which the kernel grants to one process at a time.

        Args:
            key: The key to write.
            content: Its new content.
            version: The version that the key must have; None if it must not exist.

        Returns:
            The new version, or None if the key has another version and nothing was written.
        """

    @abstractmethod
    def withdraw(self, key: str, version: Version) -> bool:
        """Delete or empty a key if it still has the given version. Returns False if it has not."""

    @abstractmethod
    def replace(self, key: str, content: bytes) -> None:
        """Write a key atomically: readers see either the old or the new content."""

    @abstractmethod
    def local(self, key: str) -> AbstractContextManager[Path]:
        """Provide a local file with the content of a key, for reading within the block.

        Raises:
            StorageError: If the key does not exist.
        """

    @abstractmethod
    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of each key below a prefix of whole path components."""

    @abstractmethod
    def stage(self, prefix: str) -> AbstractContextManager[Path]:
        """Provide an empty local folder whose files are stored as `prefix/NAME` after the block.

        If the block raises, the files may or may not be stored, and the folder is deleted.

        Raises:
            StorageError: If the disk is full.
        """

    @abstractmethod
    def publish(self, staged: str, final: str) -> bool:
        """Give a staged file its final key. Returns False if there is no such staged file."""

    @abstractmethod
    def entries(self) -> list[str]:
        """Return the names at the top level, those of folders with a `/` at the end.

        Hidden names, and folders without any file but hidden ones, are left out. The list of a
        large object store may be incomplete.
        """

    def delete(self, prefix: str, ours: Callable[[str], bool] = lambda key: True) -> None:
        """Delete a key, or all files below a prefix for which `ours` returns True."""
        self.remove(list(filter(ours, self.sizes(prefix) or [prefix])))

    @abstractmethod
    def remove(self, keys: Collection[str]) -> None:
        """Delete files, and folders that become empty. Files that do not exist are ignored."""


@contextmanager
def full_disk(where: str | Path) -> Iterator[None]:
    """Convert the errors of a full disk to a StorageError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageError(
            f"no space left on the disk of {where}",
            way_out="free some space and start the same command again; finished shards are kept",
        ) from error


def in_order(keys: Iterable[str]) -> list[str]:
    """Return those of the keys that are finished files of a table, in the order of shards."""
    return sorted(filter(is_part, keys), key=lambda key: (len(key), key))


def is_part(key: str) -> bool:
    """Whether a key has the name of a finished file of a table."""
    return key.count("/") == 1 and _PART.fullmatch(key.rpartition("/")[2]) is not None
