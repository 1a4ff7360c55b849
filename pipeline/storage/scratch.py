"""Temporary folders that do not accumulate when processes are killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dhr_batch.pipeline.errors import StorageError

# All folders in this one belong to dhr-batch, so those of killed processes can be deleted.
_PARENT = "dhr-batch.scratch"
_PREFIX = "part-"


@contextmanager
def scratch() -> Iterator[Path]:
    """Provide an empty folder in `TMPDIR/dhr-batch.scratch-UID`, and delete it after the block.

    The folder is locked while it is in use. Folders beside it that are not locked belong to killed
    processes and are deleted first.

    Raises:
        StorageError: If `dhr-batch.scratch-UID` belongs to another user.
    """
    place = Path(tempfile.gettempdir()) / f"{_PARENT}-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise StorageError(
            str(place), "it belongs to another user", "delete it, or set TMPDIR to another folder"
        )
    for old in place.glob(f"{_PREFIX}*"):
        _delete_if_abandoned(old)
    folder = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=place))
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        # Other processes look for the name without the dot, so it appears only once it is locked.
        folder = folder.rename(folder.with_name(folder.name[1:]))
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(handle)


def _delete_if_abandoned(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return  # Already deleted, or not accessible.
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may delete the same folder at the same time.
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # In use.
    finally:
        os.close(handle)
