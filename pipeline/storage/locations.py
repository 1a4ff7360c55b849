"""Read and list files by location: a local path, or the URL of an object (`s3://bucket/key`).

There are two kinds of errors. `FileNotFoundError` and other `OSError`s concern one file. A
`StorageError` concerns the file system or object store as a whole, so it tells nothing about the
file. It is raised after `DHR_BATCH_STORAGE_PATIENCE` seconds (60) of retries.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage import client
from dhr_batch.pipeline.storage.client import message
from dhr_batch.stages.networks.files.regular import opened

# Errors of a network file system that is temporarily unavailable. They do not concern one file.
_TRANSIENT = frozenset(
    {errno.ETIMEDOUT, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENFILE}
) | {errno.EMFILE}
# Errors of one file or folder, while the file system works.
_OF_ONE = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR}
)
_PAUSES_SECONDS = (0.2, 1.0, 5.0)
# High enough that the time limit of the retries is always reached first.
_RETRIES = 100
# Large enough to read the headers of several tar members in one request.
_BUFFER = 2**18
# Why a folder is left out without any loss.
LISTED = "it links to a folder that is listed already"
# The remedy if a storage does not answer.
CHECK = (
    "check that the storage is available (for an object store also its URL, and the credentials in "
    "the environment), then give the same command again"
)


class File(NamedTuple):
    """A file or object in a listing.

    Attributes:
        folder: The listed folder, with a `/` at its end, or the location of a single file.
        relative: The path below `folder`; empty for a single file.
        size: Bytes; -1 for a broken link.
        etag: A short checksum of the object's ETag; empty for local files.
        time: The time of the last change of a local file in ns; 0 for objects and broken links.
    """

    folder: str
    relative: str
    size: int
    etag: str = ""
    time: int = 0

    @property
    def location(self) -> str:
        """The path or URL."""
        return self.folder + self.relative


def is_url(location: str) -> bool:
    """Whether a location is a URL, not a path."""
    return "://" in location


def join(location: str, name: str) -> str:
    """Append a name to a path or URL."""
    return f"{location.rstrip('/')}/{name}"


def absolute(location: str) -> str:
    """Return an absolute path, or a URL as it is."""
    return location if is_url(location) else os.path.abspath(os.path.expanduser(location))


def lies_in(location: str, folder: str) -> bool:
    """Whether a location is a folder or lies below it. Both are absolute paths or URLs."""
    return f"{location.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def exists(location: str) -> bool:
    """Whether a file or object exists."""
    if not is_url(location):
        return os.path.isfile(location)
    try:
        describe(location)
    except FileNotFoundError:
        return False
    return True


def describe(location: str) -> File:
    """Return the size, and the time or etag, of one file.

    Raises:
        FileNotFoundError: If the file does not exist.
        StorageError: If its storage is unavailable.
    """
    if not is_url(location):
        status = os.stat(location)
        return File(location, "", status.st_size, time=_time(status))
    import obstore

    store, key = _split(location)
    with _converted_errors(location):
        found = obstore.head(_store(store), key)
    return File(location, "", found["size"], _short(found["e_tag"]))


def fetch(
    location: str, start: int = 0, length: int | None = None, most: int | None = None
) -> bytes:
    """Read a file or a part of it.

    Args:
        location: Path or URL.
        start: Offset of the first byte.
        length: Number of bytes; None for all up to the end of the file.
        most: Larger files are not read.

    Returns:
        The bytes. There are fewer than `length` if the file ends earlier.

    Raises:
        OSError: If this file cannot be read. Its errno is EFBIG if it is too large.
        StorageError: If its storage is unavailable.
    """
    if not is_url(location):
        return _fetch_local(location, start, length, most)
    import obstore

    store, key = _split(location)
    with _converted_errors(location):
        if length is None:
            found = obstore.get(_store(store), key)
            if most is None or found.meta["size"] <= most:
                return bytes(found.bytes())
        else:
            return bytes(obstore.get_range(_store(store), key, start=start, length=length))
    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), location)


def open_file(location: str) -> BinaryIO:
    """Open a file or object for reading. Of an object, only the ranges that are read are loaded."""
    return ranges(location) if is_url(location) else _open_local(location)


def ranges(location: str) -> BinaryIO:
    """Open a file or object whose reads go through `fetch`, with its retries and errors."""
    raw = _RangeFile(location, describe(location).size)
    return cast(BinaryIO, io.BufferedReader(raw, _BUFFER))


def walk(
    folder: str,
    enters: Callable[[str], bool] = lambda path: True,
    lost: Callable[[str, str], None] = lambda path, why: None,
) -> Iterator[File]:
    """Iterate over the files below a folder or URL prefix, in no particular order.

    Symbolic links are followed, but no folder is visited twice.

    Args:
        folder: Path or URL.
        enters: Called with the path of each subfolder of a local folder, which is below `folder`.
            Returns whether to visit it.
        lost: Called with the path of each other subfolder or file that is left out, and the reason.

    Raises:
        OSError: If the folder itself cannot be listed, or the file system is unavailable.
        StorageError: If the object store is unavailable.
    """
    return _walk_store(folder) if is_url(folder) else _walk_local(folder, enters, lost)


def _walk_local(
    root: str, enters: Callable[[str], bool], lost: Callable[[str, str], None]
) -> Iterator[File]:
    root = os.path.join(root, "")
    seen = {os.path.realpath(root)}
    queue = [""]
    while queue:
        prefix, subfolders = queue.pop(), []
        try:
            entries = os.scandir(root + prefix)
        except OSError as error:
            if not prefix or error.errno not in _OF_ONE:
                raise
            lost(prefix, error.strerror or str(error))
            continue
        with entries:
            for entry in entries:
                path = prefix + entry.name
                try:
                    if entry.is_dir():
                        subfolders.append(entry.name)
                        continue
                    status = entry.stat()
                except FileNotFoundError:
                    # Reading a broken link reports the error later, as a failure of that image.
                    yield File(root, path, -1)
                    continue
                except OSError as error:
                    if error.errno not in _OF_ONE:
                        raise
                    lost(path, error.strerror or str(error))
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield File(root, path, status.st_size, time=_time(status))
                else:
                    lost(path, "no regular file")
        # Of two links to one folder only the first is followed, so the order must not vary.
        for name in sorted(subfolders):
            if not enters(prefix + name):
                continue
            # A link to a parent folder would otherwise lead to an endless loop.
            real = os.path.realpath(root + prefix + name)
            if real in seen:
                lost(f"{prefix}{name}/", LISTED)
            else:
                seen.add(real)
                queue.append(f"{prefix}{name}/")


def _time(status: os.stat_result) -> int:
    """Return the time of the last change. Archives and clocks without a battery set it to 1970."""
    return abs(status.st_mtime_ns) or 1


def _walk_store(root: str) -> Iterator[File]:
    import obstore

    root = join(root, "")
    store, prefix = _split(root)
    with _converted_errors(root):
        for page in obstore.list(_store(store), prefix=prefix or None, chunk_size=1000):
            for found in page:
                relative = found["path"].removeprefix(prefix)
                # Some tools store an empty object for each folder.
                if relative and not relative.endswith("/"):
                    yield File(root, relative, found["size"], _short(found["e_tag"]))


def _short(etag: str | None) -> str:
    """Shorten an ETag to a checksum of eight digits, as a million whole ones take much memory."""
    return f"{zlib.crc32(etag.encode()):08x}" if etag else ""


def _split(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


@lru_cache(maxsize=16)
def _store(url: str) -> Any:
    """Return a client, configured by environment variables such as `AWS_ENDPOINT_URL`."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    seconds = client.patience()
    options = client.options(timeout=30.0, retries=_RETRIES, retry_seconds=seconds)
    try:
        return from_url(url, **options)
    except (BaseError, ValueError) as error:
        raise StorageError(
            url, f"it cannot be opened: {message(error)}", "correct the URL"
        ) from error


@contextmanager
def _converted_errors(location: str) -> Iterator[None]:
    """Convert errors of a request to FileNotFoundError for a missing object, else StorageError."""
    from obstore.exceptions import BaseError, NotFoundError

    try:
        yield
    except (FileNotFoundError, NotFoundError) as error:
        _check_bucket(location)
        raise FileNotFoundError(errno.ENOENT, "no such object", location) from error
    except StorageError:
        raise
    except ValueError as error:
        raise StorageError(location, message(error), "correct the URL") from error
    except (BaseError, OSError) as error:
        raise StorageError(location, message(error), CHECK) from error


def _check_bucket(location: str) -> None:
    """Raise StorageError if the whole bucket is missing, not only an object in it.

    A request for an object answers 404 in both cases. Only a listing distinguishes them.
    """
    import obstore
    from obstore.exceptions import BaseError, PermissionDeniedError

    store, key = _split(location)
    try:
        next(iter(obstore.list(_store(store), prefix=key)), None)
    except PermissionDeniedError:
        return  # The permission to read does not include the permission to list.
    except (BaseError, OSError) as error:
        raise StorageError(location, message(error), CHECK) from error


def _open_local(path: str, most: int | None = None) -> BinaryIO:
    if most is not None and os.path.getsize(path) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return opened(path)


def _fetch_local(path: str, start: int, length: int | None, most: int | None) -> bytes:
    pauses = iter(_PAUSES_SECONDS)
    while True:
        try:
            with _open_local(path, most) as file:
                file.seek(start)
                return file.read(-1 if length is None else length)
        except FileNotFoundError as error:
            # If the file system was unmounted, all its files are missing, not only this one.
            _check_folder(path, error)
            raise
        except OSError as error:
            if error.errno not in _TRANSIENT and error.errno != errno.EIO:
                raise
            pause = next(pauses, None)
            if pause is None:
                # EIO concerns the file system on a soft mount, but the file on a damaged disk.
                if error.errno == errno.EIO:
                    _check_folder(path, error)
                    raise
                raise StorageError(str(path), error.strerror or str(error), CHECK) from error
            time.sleep(pause)


def _check_folder(path: str, error: OSError) -> None:
    """Raise StorageError if the folder of a file cannot be listed or is empty."""
    try:
        mounted = next(Path(path).parent.iterdir(), None) is not None
    except OSError:
        mounted = False
    if not mounted:
        raise StorageError(
            f"the folder of {path}",
            "it does not exist or is empty",
            "check that its file system is mounted",
        ) from error


class _RangeFile(io.RawIOBase):
    """A raw file object over a location. Each read is one request."""

    def __init__(self, location: str, size: int) -> None:
        self.location, self.size, self._position = location, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self.size - self._position)
        if length <= 0:
            return 0
        data = fetch(self.location, self._position, length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
