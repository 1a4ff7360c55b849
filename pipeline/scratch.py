"""Temporary folders that do not pile up when their processes are killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "dhr-batch-"


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder below `TMPDIR`, deleted at the end.

    It is locked while it is used. Folders without a lock are those of killed processes and are
    deleted first.
    """
    for old in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _delete_if_abandoned(old)
    folder = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))
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
