"""The images of a dataset, the location of their bytes, and the rules for their ids."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.printable import without_secrets
from dhr_batch.pipeline.storage.locations import File, is_url

# What Python takes names of files for.
_LOCALE = sys.getfilesystemencoding().lower()
# No file has so many bytes.
_TIME = 2**48
Format = Literal["auto", "files", "tar", "parquet"]
# Shows whether an image may have changed (see `Item.mark`).
Mark = int | str
# Differences of marks, besides those of sizes. A copy of the same content has other times, and in
# another kind of storage an etag in place of a time, or the reverse.
ETAG, TIME, COPIED = "etag", "another time", "copied"


class DatasetError(Refused):
    """A dataset cannot be used. The message gives the reason and the remedy."""


class Unreadable(Exception):
    """One image cannot be read.

    Args:
        reason: An explanation for the user, from which passwords of URLs are taken.
        error_class: The class in the table of failures.
    """

    def __init__(self, reason: str, error_class: str = "unreadable") -> None:
        super().__init__(without_secrets(reason))
        self.error_class = error_class


class Item(NamedTuple):
    """One image of a dataset, and the location of its bytes.

    Items are small, because a dataset may have a million of them: `place` and `name` are shared
    with other items and with the id.

    Attributes:
        image_id: The id of the image, unique in the dataset.
        place: The folder of the file that holds the image, or the whole path or URL of the file.
        name: The path of the file below `place`; empty if `place` is the file.
        stamp: The size in bytes, and the time if it is a local file (see `stamp`); -1 if the size
            is known only after reading.
        at: The byte offset in a tar, or the row of a Parquet file; -1 if the file is the image.
        etag: A short text that changes with the content; empty if there is none.
        leaf: The column of a Parquet file; empty for other files.
    """

    image_id: str
    place: str
    name: str
    stamp: int
    at: int = -1
    etag: str = ""
    leaf: str = ""

    @property
    def location(self) -> str:
        """The path or URL of the file that holds the image."""
        return self.place + self.name

    @property
    def size(self) -> int:
        """Bytes; -1 if they are known only after reading."""
        return self.stamp if self.stamp < 0 else self.stamp % _TIME

    @property
    def time(self) -> int:
        """The time of the last change of a local file, in ns; 0 if it is unknown."""
        return max(self.stamp, 0) // _TIME

    @property
    def mark(self) -> Mark:
        """`SIZE:ETAG` or `SIZE@TIME`: a change of the image most likely changes it."""
        if self.etag:
            return f"{self.size}:{self.etag}"
        return f"{self.size}@{self.time}" if self.time else self.size


def stamp(size: int, time: int) -> int:
    """Return a size and a time as one number, as two of a million images take more memory.

    Args:
        size: Bytes.
        time: As in `locations.File`.
    """
    return size + max(time, 0) * _TIME


def difference(before: Mark, now: Mark) -> str:
    """Describe how two marks differ; "" if they do not.

    Runs of earlier versions have stored the size alone, with which only a size is compared.

    Returns:
        The sizes, or `ETAG`, `TIME` or `COPIED`.
    """
    (size, etag, time), (new_size, new_etag, new_time) = _parts(before), _parts(now)
    if "-1" in (size, new_size) and (etag or time) and (new_etag or new_time) and size != new_size:
        # The size of a single row of a Parquet file is not known.
        return COPIED
    if size != new_size:
        return f"{size} -> {new_size} bytes"
    if etag and new_etag:
        if etag != new_etag:
            return ETAG
    elif (etag or new_etag) and (time or new_time):
        return COPIED
    return TIME if time and new_time and time != new_time else ""


def _parts(mark: Mark) -> tuple[str, str, str]:
    text, _, time = str(mark).partition("@")
    size, _, etag = text.partition(":")
    return size, etag, time


class Listing(NamedTuple):
    """The images of a dataset in plan order, and the number of what is left out by its kind."""

    items: list[Item]
    ignored: Counter[str]


def left_out(ignored: Mapping[str, int]) -> str:
    """Return what a listing has left out as a text; "" if there is nothing."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))


class Rules(NamedTuple):
    """How images are listed.

    Attributes:
        extensions: Extensions of images in lower case, with the dot.
        format: As in `Dataset`, and so are the other attributes.
    """

    extensions: frozenset[str]
    format: Format = "auto"
    recursive: bool = True
    column: str | None = None
    id_column: str | None = None
    archive_in_id: bool = False
    exclude: tuple[str, ...] = ()


def image_id(relative: str) -> str:
    """Return the id of an image: its path in Unicode normalization form C.

    Names of files are taken as UTF-8, whatever the locale. Bytes that are not become `\\udcNN`.
    """
    if relative.isascii():
        return relative
    if _LOCALE != "utf-8":
        # Texts that do not come from a file system are no UTF-8 in the bytes of the locale.
        errors = "surrogateescape" if _LOCALE == "ascii" else "strict"
        with suppress(UnicodeError):
            relative = os.fsencode(relative).decode("utf-8", errors)
    text = unicodedata.normalize("NFC", relative)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def each(function: Callable[[File], Any], files: list[File]) -> Iterable[Any]:
    """Apply a function to all files: to objects in eight threads, to local files one by one."""
    if not is_url(files[0].location):
        return map(function, files)
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, files))


def readable(
    function: Callable[[File], Any], files: list[File], lost: Callable[[str, str], None]
) -> Iterator[tuple[File, Any]]:
    """Apply a function to archives, and iterate over those that can be read with the results.

    Args:
        function: Raises DatasetError for an archive that cannot be read.
        files: The archives.
        lost: Called with the path of each archive that cannot be read, and the reason.

    Raises:
        DatasetError: The first one, if no archive can be read.
    """

    def attempt(file: File) -> Any:
        try:
            return function(file)
        except DatasetError as error:
            return error

    errors, some = [], False
    for file, found in zip(files, each(attempt, files), strict=True):
        if isinstance(found, DatasetError):
            errors.append(found)
            lost(file.relative, found.why)
        else:
            some = True
            yield file, found
    if errors and not some:
        raise errors[0]
