"""What a dataset lists: images, where their bytes are, and the rules for their ids."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from dhr_batch.pipeline.storage.locations import File, is_url

Format = Literal["auto", "files", "tar", "parquet"]


class DatasetError(ValueError):
    """A dataset cannot be used; the message says why and what to do."""


class Unreadable(Exception):
    """One image cannot be read; the message says why."""


class Item(NamedTuple):
    """One image of a dataset and where its bytes are: small, as there may be a million.

    place, name: together the path or URL of the file that holds it, in two strings that are shared
    with other items and with the id. at: -1 where the file is the image, else the
    byte offset in a tar or the row of a Parquet file. size: bytes, -1 where only reading tells.
    etag: changes when the content does, "" where nothing cheap does so. leaf: Parquet column.
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
        return self.place + self.name

    @property
    def mark(self) -> int | str:
        """What a changed image most likely changes: its size, and its etag where it has one."""
        return f"{self.size}:{self.etag}" if self.etag else self.size


class Listing(NamedTuple):
    """The images of a dataset in plan order, and other files by extension."""

    items: list[Item]
    ignored: Counter[str]


class Rules(NamedTuple):
    """How a place is listed. extensions: of images, lower case; the others are `Dataset`'s."""

    extensions: frozenset[str]
    format: Format = "auto"
    recursive: bool = True
    column: str | None = None
    id_column: str | None = None
    archive_in_id: bool = False


def image_id(relative: str) -> str:
    """NFC of a path with '/' separators; bytes that are not UTF-8 become `\\udcNN`."""
    if relative.isascii():
        return relative
    text = unicodedata.normalize("NFC", relative)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def each(function: Callable[[File], Any], files: list[File]) -> Iterable[Any]:
    """`map`; objects are waited for side by side, local archives need no company."""
    if not is_url(files[0].location):
        return map(function, files)
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, files))
