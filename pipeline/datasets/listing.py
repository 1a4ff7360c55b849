"""List and read the images of a folder, of tar archives or of Parquet files."""

from __future__ import annotations

import errno
import os
from collections import Counter
from itertools import pairwise
from operator import itemgetter

from dhr_batch.pipeline.datasets import tar
from dhr_batch.pipeline.datasets.items import (
    DatasetError,
    Item,
    Listing,
    Rules,
    Unreadable,
    image_id,
    readable,
    stamp,
)
from dhr_batch.pipeline.datasets.sieve import Sieve
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.storage.locations import File
from dhr_batch.stages.options.align import MAX_MEGAPIXELS

# The largest file that is read for an image: four channels of 16 bits without compression, and
# metadata.
_BYTES_PER_PIXEL = 8
_METADATA = 2**26
_KINDS = ("tar", "parquet")
# Extensions that are left out and counted one by one.
_MOST_KINDS = 100
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def scan(root: str, rules: Rules) -> Listing:
    """List all images below a folder or URL, or in one .tar or .parquet file.

    With the format `auto`, a folder without images is read as a folder of archives. Files and tar
    members are sorted by id (by code point). Rows of Parquet files keep their order, because those
    of a row group are read one after the other.

    Raises:
        DatasetError: If the location cannot be listed, or two images have the same id.
        StorageError: If the storage is unavailable.
    """
    items, ignored, archives = [], Counter[str](), []
    is_store = locations.is_url(root)
    sieve = Sieve(rules, ignored, "" if is_store else root)
    try:
        if is_archive(root):
            return _archives([locations.describe(root)], extension(root)[1:], rules, ignored)
        for file in locations.walk(root, sieve.enters, sieve.lost):
            if is_store:
                sieve.note(file.relative)
            if not sieve.takes(file.relative):
                continue
            kind = extension(file.relative)
            if rules.format in ("auto", "files") and kind in rules.extensions:
                items.append(_whole(file))
            elif kind[1:] in _KINDS:
                archives.append(file)
            else:
                ignored[kind or "no extension"] += 1
    except StorageError:
        raise
    except OSError as error:
        raise DatasetError(
            str(root), f"it cannot be listed: {error}", "check the path and its permissions"
        ) from error
    if is_store:
        # The marker of a folder may come after other files in it.
        items = [item for item in items if sieve.takes(item.name)]
        archives = [file for file in archives if sieve.takes(file.relative)]
    kinds = {kind: [f for f in archives if extension(f.relative) == f".{kind}"] for kind in _KINDS}
    fits = (kind for kind in _KINDS if kinds[kind] and rules.format in ("auto", kind))
    read = None if items else next(fits, None)
    ignored.update({f".{kind}": len(files) for kind, files in kinds.items() if kind != read})
    if read:
        return _archives(sorted(kinds[read]), read, rules, ignored)
    items.sort(key=itemgetter(0))
    _unique(items)
    return _listing(items, ignored)


def _listing(items: list[Item], ignored: Counter[str]) -> Listing:
    """Return the result. Extensions that are numbers of files are counted together."""
    kinds = (kind for kind in ignored if kind.startswith("."))
    rare = sorted(kinds, key=lambda kind: (-ignored[kind], kind))[_MOST_KINDS:]
    ignored["other extensions"] += sum(ignored.pop(kind) for kind in rare)
    return Listing(items, +ignored)


def _whole(file: File) -> Item:
    name = file.relative
    return Item(image_id(name), file.folder, name, stamp(file.size, file.time), -1, file.etag)


def is_archive(root: str) -> bool:
    """Whether a path or URL is a single .tar or .parquet file."""
    return extension(root)[1:] in _KINDS and not os.path.isdir(root)


def extension(name: str) -> str:
    """Return the extension of a file name.

    >>> extension("a/B.JPG"), extension("c.tar.gz"), extension("d")
    ('.jpg', '.tar.gz', '')
    """
    base = name.rpartition("/")[2].lstrip(".").lower()
    if base.endswith(_COMPRESSED):
        return next(suffix for suffix in _COMPRESSED if base.endswith(suffix))
    return "." + base.rpartition(".")[2] if "." in base else ""


def _archives(files: list[File], kind: str, rules: Rules, ignored: Counter[str]) -> Listing:
    if kind == "parquet":
        from dhr_batch.pipeline.datasets import parquet

        lost = Sieve(rules, ignored).lost
        items = parquet.items(files, rules.column, rules.id_column, lost)
        _unique(sorted(items, key=itemgetter(0)))
        return _listing(items, ignored)
    items = []
    for file, (members, others) in readable(tar.members, files, Sieve(rules, ignored).lost):
        ignored += others
        prefix = f"{file.relative}/" if rules.archive_in_id and file.relative else ""
        location, sieve = file.location, Sieve(rules._replace(recursive=True), ignored)
        for member in members:
            sieve.note(member.name)
        for name, size, offset in members:
            if not sieve.takes(name):
                continue
            if extension(name) in rules.extensions:
                member_id = image_id(prefix + name)
                number = stamp(size, file.time)
                items.append(Item(member_id, location, "", number, offset, file.etag))
            else:
                ignored[extension(name) or "no extension"] += 1
    items.sort(key=itemgetter(0))
    _unique(items)
    return _listing(items, ignored)


def _unique(items: list[Item]) -> None:
    """Raise DatasetError if two items have the same id. The items are sorted by id."""
    for one, other in pairwise(items):
        if one.image_id == other.image_id:
            way_out = "rename one of them"
            if one.location != other.location and one.at >= 0:
                way_out = "set archive_in_id: true, or rename"
            raise DatasetError(
                f"{_where(one)} and {_where(other)}",
                f"they have the same id {one.image_id!r} (names are compared after Unicode "
                "normalisation)",
                way_out,
            )


def _where(item: Item) -> str:
    return item.location if item.at < 0 else f"{item.location} (at {item.at})"


def read_bytes(item: Item, max_megapixels: float = MAX_MEGAPIXELS) -> bytes:
    """Read an encoded image. Parquet files stay open in this process.

    Args:
        item: The image.
        max_megapixels: Decides how large the file may be, because it is read whole into memory.

    Raises:
        Unreadable: If this image cannot be read, or is too large.
        StorageError: If its storage is unavailable.
    """
    most = _METADATA + int(_BYTES_PER_PIXEL * 1e6 * max_megapixels)
    if item.at < 0:
        try:
            return locations.fetch(item.location, most=most)
        except StorageError:
            raise
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise _too_large(most, max_megapixels) from error
            raise Unreadable(error.strerror or str(error)) from error
    if item.leaf:
        from dhr_batch.pipeline.datasets import parquet

        data = parquet.read_cell(item.location, item.leaf, item.at)
        if len(data) > most:
            raise _too_large(most, max_megapixels)
        return data
    if item.size > most:
        raise _too_large(most, max_megapixels)
    try:
        data = locations.fetch(item.location, item.at, item.size)
    except StorageError:
        raise
    except OSError as error:
        # An archive holds many images, so its absence is not a failure of this one.
        raise StorageError(item.location, error.strerror or str(error), locations.CHECK) from error
    if len(data) != item.size:
        raise Unreadable(
            f"{item.location} ends before the end of the image; it may have been replaced "
            "since the start of the run"
        )
    return data


def _too_large(most: int, max_megapixels: float) -> Unreadable:
    return Unreadable(
        f"the file is larger than {most / 1e6:.0f} MB, the limit for images of {max_megapixels:g} "
        "megapixels; raise align.max_megapixels, or remove what is behind the image",
        "too_large",
    )
