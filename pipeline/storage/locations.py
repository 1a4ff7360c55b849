"""Files and objects by location: a local path, or the URL of an object (`s3://bucket/key`).

Two kinds of errors are kept apart. `FileNotFoundError` and other `OSError`s are about one file. A
`StorageError` is about the place the file lies in, so nothing can be said about the file itself.
It is raised after `DHR_BATCH_STORAGE_PATIENCE` seconds (60) of trying again.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage import client
from dhr_batch.pipeline.storage.client import message

# A network file system says these when it is away for a moment, not about one file.
_TRANSIENT = frozenset(
    {errno.ETIMEDOUT, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENFILE}
) | {errno.EMFILE}
_PAUSES_SECONDS = (0.2, 1.0, 5.0)
# More than fit into the time for which a read is repeated.
_RETRIES = 100
# One request for the headers of several tar members.
_BUFFER = 2**18


class File(NamedTuple):
    """A listed file: `folder` and `relative` are its location. size: bytes. etag: "" if local."""

    folder: str
    relative: str
    size: int
    etag: str = ""

    @property
    def location(self) -> str:
        return self.folder + self.relative


def is_url(location: str) -> bool:
    return "://" in location


def join(location: str, name: str) -> str:
    return f"{location.rstrip('/')}/{name}"


def absolute(location: str) -> str:
    """A place as it can be found from any folder."""
    return location if is_url(location) else os.path.abspath(os.path.expanduser(location))


def lies_in(location: str, folder: str) -> bool:
    """Whether a place is a folder or below it; absolute paths or URLs, as storages have them."""
    return f"{location.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def exists(location: str) -> bool:
    """Whether there is a file or object of this name."""
    if not is_url(location):
        return os.path.isfile(location)
    try:
        describe(location)
    except FileNotFoundError:
        return False
    return True


def describe(location: str) -> File:
    """Size and etag of one file; `relative` is empty. Raises FileNotFoundError, StorageError."""
    if not is_url(location):
        return File(location, "", os.stat(location).st_size)
    import obstore

    store, key = _split(location)
    with _asking(location):
        found = obstore.head(_store(store), key)
    return File(location, "", found["size"], _short(found["e_tag"]))


def fetch(location: str, start: int = 0, length: int | None = None) -> bytes:
    """The bytes of a file, or `length` of them from `start`; fewer where the file ends earlier.

    Raises OSError where this file cannot be read, StorageError where its storage cannot.
    """
    if not is_url(location):
        return _fetch_local(location, start, length)
    import obstore

    store, key = _split(location)
    with _asking(location):
        if length is None:
            return bytes(obstore.get(_store(store), key).bytes())
        return bytes(obstore.get_range(_store(store), key, start=start, length=length))


def open_file(location: str) -> BinaryIO:
    """A file that can be read and sought. Of an object only the ranges that are read travel."""
    return ranges(location) if is_url(location) else open(location, "rb")


def ranges(location: str) -> BinaryIO:
    """A file that is read by `fetch`, so that a mount or store that is away is told as there."""
    raw = _RangeFile(location, describe(location).size)
    return cast(BinaryIO, io.BufferedReader(raw, _BUFFER))


def walk(folder: str, recursive: bool = True) -> Iterator[File]:
    """All files below a folder or URL prefix, but no hidden ones, in no promised order.

    Links are followed, to each folder once. Raises OSError for a folder that cannot be listed.
    """
    return _walk_store(folder, recursive) if is_url(folder) else _walk_local(folder, recursive)


def _walk_local(root: str, recursive: bool) -> Iterator[File]:
    root = os.path.join(root, "")
    seen = {os.path.realpath(root)}
    queue = [""]
    while queue:
        prefix = queue.pop()
        subfolders = []
        with os.scandir(root + prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    subfolders.append(entry.name)
                elif (size := _size(entry)) is not None:
                    yield File(root, prefix + entry.name, size)
        # Sorted, since of two links to one folder only the first is followed.
        for name in sorted(subfolders) if recursive else ():
            # A link to a folder above would otherwise be followed for ever.
            real = os.path.realpath(root + prefix + name)
            if real not in seen:
                seen.add(real)
                queue.append(f"{prefix}{name}/")


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes; -1 for a broken link, which reading will report; None for pipes and devices."""
    try:
        found = entry.stat()
    except FileNotFoundError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _walk_store(root: str, recursive: bool) -> Iterator[File]:
    import obstore

    root = join(root, "")
    store, prefix = _split(root)
    with _asking(root):
        for page in obstore.list(_store(store), prefix=prefix or None, chunk_size=1000):
            for found in page:
                relative = found["path"].removeprefix(prefix)
                hidden = relative.startswith(".") or "/." in relative
                if not hidden and (recursive or "/" not in relative):
                    yield File(root, relative, found["size"], _short(found["e_tag"]))


def _short(etag: str | None) -> str:
    """Eight digits are enough to see a change, and a million full ones are not small."""
    return f"{zlib.crc32(etag.encode()):08x}" if etag else ""


def _split(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


@lru_cache(maxsize=16)
def _store(url: str) -> Any:
    """A client, with the settings its environment variables give (AWS_ENDPOINT_URL, ...)."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    seconds = client.patience()
    options = client.options(timeout=30.0, retries=_RETRIES, retry_seconds=seconds)
    try:
        return from_url(url, **options)
    except (BaseError, ValueError) as error:
        raise StorageError(f"{url} cannot be opened: {message(error)}") from error


@contextmanager
def _asking(location: str) -> Iterator[None]:
    """Tells errors about one object (a missing one) from errors of the store that holds it."""
    from obstore.exceptions import BaseError, NotFoundError

    try:
        yield
    except (FileNotFoundError, NotFoundError) as error:
        _check_bucket(location)
        raise FileNotFoundError(errno.ENOENT, "no such object", location) from error
    except (BaseError, OSError) as error:
        raise StorageError(f"{location}: {message(error)}") from error


def _check_bucket(location: str) -> None:
    """Raise StorageError where not only an object is missing but its bucket, too.

    The answer about an object is 404 for both; only a listing tells them apart.
    """
    import obstore
    from obstore.exceptions import BaseError, PermissionDeniedError

    store, key = _split(location)
    try:
        next(iter(obstore.list(_store(store), prefix=key)), None)
    except PermissionDeniedError:
        return  # Who may read need not be allowed to list.
    except (BaseError, OSError) as error:
        raise StorageError(f"{location}: {message(error)}") from error


def _fetch_local(path: str, start: int, length: int | None) -> bytes:
    pauses = iter(_PAUSES_SECONDS)
    while True:
        try:
            with open(path, "rb") as file:
                file.seek(start)
                return file.read(-1 if length is None else length)
        except FileNotFoundError as error:
            # A file system that went away takes all files with it; one of them says nothing.
            _check_folder(path, error)
            raise
        except OSError as error:
            if error.errno not in _TRANSIENT and error.errno != errno.EIO:
                raise
            pause = next(pauses, None)
            if pause is None:
                # EIO of a soft mount is about the place, that of a damaged disk about the file.
                if error.errno == errno.EIO:
                    _check_folder(path, error)
                    raise
                raise StorageError(f"{path}: {error.strerror or error}") from error
            time.sleep(pause)


def _check_folder(path: str, error: OSError) -> None:
    """Raise StorageError where the folder of a file cannot be listed or holds nothing."""
    try:
        there = next(Path(path).parent.iterdir(), None) is not None
    except OSError:
        there = False
    if not there:
        raise StorageError(
            f"the folder of {path} is gone or empty: is its file system mounted?"
        ) from error


class _RangeFile(io.RawIOBase):
    """A file or object as a raw file; each read is one request."""

    def __init__(self, location: str, size: int) -> None:
        self.location, self.size, self._at = location, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self.size - self._at)
        if length <= 0:
            return 0
        data = fetch(self.location, self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
