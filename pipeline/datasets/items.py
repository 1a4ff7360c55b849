"""The images of a dataset, the location of their bytes, and the rules for their ids."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.printable import without_secrets
from dhr_batch.pipeline.storage.locations import File, is_url

Format = Literal["auto", "files", "tar", "parquet"]


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
        size: Bytes; -1 if they are known only after reading.
        at: The byte offset in a tar, or the row of a Parquet file; -1 if the file is the image.
        etag: A text that changes with the content; empty if there is none that is cheap to get.
        leaf: The column of a Parquet file; empty for other files.
    """

    image_id: str
    place: str
    name: str
    size: int
    at: int = -1
    etag: str = ""
    leaf: str = ""

    @property
    def location(self) -> str:
        """The path or URL of the file that holds the image."""
        return self.place + self.name

    @property
    def mark(self) -> int | str:
        """The size, and the etag if there is one: a change of the image most likely changes it."""
        return f"{self.size}:{self.etag}" if self.etag else self.size


class Listing(NamedTuple):
    """The images of a dataset in plan order, and the number of other files by extension."""

    items: list[Item]
    ignored: Counter[str]


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


def image_id(relative: str) -> str:
    """Return the id of an image: its path in Unicode normalization form C.

    Bytes that are not UTF-8 become `\\udcNN`.
    """
    if relative.isascii():
        return relative
    text = unicodedata.normalize("NFC", relative)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def each(function: Callable[[File], Any], files: list[File]) -> Iterable[Any]:
    """Apply a function to all files: to objects in eight threads, to local files one by one."""
    if not is_url(files[0].location):
        return map(function, files)
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, files))
