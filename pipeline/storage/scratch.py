"""Temporary folders that do not pile up when their processes are killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dhr_batch.pipeline.errors import StorageError

# Folders in it are ours by their place: other folders of a user may have any name.
_PLACE = "dhr-batch.scratch"
_PREFIX = "part-"


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder in `TMPDIR/dhr-batch.scratch-UID`, deleted at the end.

    It is locked while it is used. Folders there without a lock are those of killed processes and
    are deleted first. Raises StorageError where that place belongs to somebody else.
    """
    place = Path(tempfile.gettempdir()) / f"{_PLACE}-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise StorageError(
            f"{place} is not this user's: delete it, or set TMPDIR to another folder"
        )
    for old in place.glob(f"{_PREFIX}*"):
        _delete_if_abandoned(old)
    folder = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        # It gets the name that others look for only now that they see it locked.
        folder = folder.rename(folder.with_name(folder.name[1:]))
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(handle)


def _delete_if_abandoned(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # Gone by now, or somebody else's.
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Two processes may find the same one.
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # In use.
    finally:
        os.close(handle)
