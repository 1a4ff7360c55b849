"""Iterate over the members of a tar archive whose headers may be damaged.

`tarfile` believes what a header says: it reads a name of any length into memory, and follows a
negative size backwards (CVE-2025-8194, in Python before 3.11.14, 3.12.12 and 3.13.6).
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

# Members that hold a name or other facts about the next one.
_ABOUT_NEXT = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE}
) | {tarfile.SOLARIS_XHDTYPE}
# Their largest size. Names have 4 kB, extended attributes of Linux 64 kB, one third more as text.
_MOST_ABOUT_NEXT = 2**18
_DAMAGE = (ValueError, ArithmeticError, LookupError, AttributeError, MemoryError, RecursionError)


class DamagedTar(tarfile.TarError):
    """A header contradicts the archive."""


@contextmanager
def opened(handle: BinaryIO) -> Iterator[tarfile.TarFile]:
    """Open the archive that begins at the current place of a file.

    Raises:
        TarError: There is none, or its first header is damaged.
    """
    start = handle.tell()
    whole = handle.seek(0, io.SEEK_END)
    handle.seek(start)
    checked: Any = type("Checked", (_Checked,), {"whole": whole})
    with _damage():
        archive = tarfile.TarFile(fileobj=handle, tarinfo=checked)
    with archive:
        yield archive


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Iterate over the members of an archive to its end mark, or to the end of the file.

    Raises:
        TarError: A header is damaged.
    """
    place = -1
    while True:
        with _damage():
            member = archive.next()
        if member is None:
            break
        # Otherwise tarfile keeps about a kilobyte per member.
        archive.members.clear()  # type: ignore[attr-defined]
        if member.size < 0 or member.offset_data <= place:
            raise DamagedTar(f"the size of {member.name[:80]!r} leads back")
        place = member.offset_data
        yield member
    # A header that tarfile does not understand ends the archive without a word.
    handle: Any = archive.fileobj
    handle.seek(archive.offset)
    if handle.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise DamagedTar(f"there is no header at byte {archive.offset}")


class _Checked(tarfile.TarInfo):
    """A member whose size is compared with the file before anything is read."""

    whole = 0

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> Any:
        found = super().frombuf(buf, encoding, errors)
        read = found.isreg() or found.type not in tarfile.SUPPORTED_TYPES
        most = _MOST_ABOUT_NEXT if found.type in _ABOUT_NEXT else cls.whole
        if found.size < 0 or ((read or found.type in _ABOUT_NEXT) and found.size > most):
            raise DamagedTar(f"{found.name[:80]!r} says it has {found.size} bytes")
        if buf[257:265] == tarfile.GNU_MAGIC:
            # Incremental archives have times where others have the first part of a name.
            times = tarfile.nts(buf[345:500], encoding, errors)  # type: ignore[attr-defined]
            found.name = found.name.removeprefix(f"{times}/" if times else "")
        return found


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise DamagedTar(str(error) or type(error).__name__) from error
