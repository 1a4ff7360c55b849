"""The files in uncompressed tar archives."""

from __future__ import annotations

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO, NamedTuple

from dhr_batch.pipeline.datasets import tar_headers
from dhr_batch.pipeline.datasets.items import DatasetError
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.storage.locations import File

_CHUNK = 2**20


class Member(NamedTuple):
    """The name of a file in an archive, and the location of its bytes."""

    name: str
    size: int
    offset: int


def members(file: File) -> tuple[list[Member], Counter[str]]:
    """List the files in an archive, and in those that follow it in the same file.

    A hard link is listed with the bytes of its target, which lies before it. Of several files of
    one name, the last is listed, which is the one that tar leaves on the disk.

    Returns:
        The files, and the number of other members by kind.

    Raises:
        DatasetError: If it is not an uncompressed archive, or is damaged.
        StorageError: If the storage is unavailable.
    """
    found: list[Member] = []
    others: Counter[str] = Counter()
    targets = set()
    try:
        with locations.open_file(file.location) as handle:
            for member in _each(handle, others):
                if member.islnk():
                    targets.add(_name(member.linkname))
                elif kind := _kind(member):
                    others[kind] += 1
                elif not member.isdir():
                    found.append(_file(member))
            if targets:
                found = list(_linked(handle, targets, others))
    except StorageError:
        raise
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(
            file.location,
            f"it cannot be read as an uncompressed tar archive: {error}",
            "pack it again without compression, or unpack it and give the folder",
        ) from error
    return _newest(found, others), others


def _newest(found: list[Member], others: Counter[str]) -> list[Member]:
    # A sorted list takes less memory than a set of a million names.
    names = sorted(member.name for member in found)
    twice = {one for one, other in pairwise(names) if one == other}
    if not twice:
        return found
    last = {member.name: at for at, member in enumerate(found) if member.name in twice}
    kept = [one for at, one in enumerate(found) if last.get(one.name, at) == at]
    others["older file of the same name in a tar"] += len(found) - len(kept)
    return kept


def _each(handle: BinaryIO, others: Counter[str]) -> Iterator[tarfile.TarInfo]:
    """Iterate over the members of an archive, and of those behind its end mark."""
    start: int | None = 0
    while start is not None:
        handle.seek(start)
        if start and not _is_header(handle.read(tarfile.BLOCKSIZE)):
            others["unreadable rest of an archive"] += 1
            return
        handle.seek(start)
        with tar_headers.opened(handle) as archive:
            yield from tar_headers.members(archive)
            end = archive.offset
        start = _next_block(handle, end)


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _next_block(handle: BinaryIO, start: int) -> int | None:
    """Return the offset of the next block that is not empty, or None if there is none."""
    handle.seek(start)
    while chunk := handle.read(_CHUNK):
        if content := chunk.lstrip(b"\0"):
            before = len(chunk) - len(content)
            return start + before - before % tarfile.BLOCKSIZE
        start += len(chunk)
    return None


def _linked(handle: BinaryIO, targets: set[str], others: Counter[str]) -> Iterator[Member]:
    """Iterate over the files and hard links of an archive, read for the second time.

    Only now it is known of which members the location must be kept.
    """
    known: dict[str, Member] = {}
    for member in _each(handle, Counter()):
        name = _name(member.name)
        if member.islnk():
            if _name(member.linkname) == name:
                continue  # GNU tar writes this if a file is given to it twice.
            target = known.get(_name(member.linkname))
            if target is None:
                others["hard link without its target"] += 1
                continue
            found = target._replace(name=name)
        elif member.isdir() or _kind(member):
            continue
        else:
            found = _file(member)
        if name in targets:
            known[name] = found
        yield found


def _file(member: tarfile.TarInfo) -> Member:
    return Member(_name(member.name), member.size, member.offset_data)


def _name(name: str) -> str:
    """Return a path as tar unpacks it, without `.` and `..`; absolute ones keep their first `/`."""
    short = name.removeprefix("./")
    if "./" not in short and "//" not in name:
        return short
    name = posixpath.normpath(name)
    while name.startswith("../"):
        name = name.removeprefix("../")
    return name


def _kind(member: tarfile.TarInfo) -> str:
    """Return the kind of a member that is neither a file, a folder nor a hard link."""
    if member.issym():
        return "symbolic link"
    if member.issparse():
        return "sparse file"
    return "" if member.isreg() or member.isdir() else "no regular file"
