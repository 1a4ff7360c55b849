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


# The most bytes of the path of a socket, of which Ray appends some sixty to a folder of `scratch`,
# such as /session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store.
_SOCKET_PATH = 103
_APPENDED = len("/part-12345678") + 64


def socket_place() -> Path:
    """Return a folder for `scratch` whose path is short enough for the sockets of Ray.

    It lies in RAY_TMPDIR, TMPDIR or, if these are too long or cannot be written, in a temporary
    folder of the system.

    Raises:
        StorageError: If there is none.
    """
    for folder in (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp", "/var/tmp"):
        place = Path(folder or tempfile.gettempdir()).absolute() / f"dhr-{os.getuid()}"
        fits = len(os.fsencode(place)) + _APPENDED <= _SOCKET_PATH
        if fits and os.access(place.parent, os.W_OK | os.X_OK):
            return place
    raise StorageError(
        f"the temporary folder {tempfile.gettempdir()}",
        "its path is too long for the sockets of Ray, and /tmp and /var/tmp cannot be written",
        "set RAY_TMPDIR to a folder with a short path, such as /tmp",
    )


def home_is_writable() -> bool:
    """Whether packages can write to the home folder."""
    home = os.path.expanduser("~")
    return os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK)


@contextmanager
def scratch(place: Path | None = None) -> Iterator[Path]:
    """Provide an empty folder that only this user can read, and delete it after the block.

    The folder is locked while it is in use. Folders beside it that are not locked belong to killed
    processes and are deleted first.

    Args:
        place: The folder to create it in; None for `TMPDIR/dhr-batch.scratch-UID`.

    Raises:
        StorageError: If `place` belongs to another user.
    """
    place = place or Path(tempfile.gettempdir()) / f"{_PARENT}-{os.getuid()}"
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
        # A process that is about to end may still write to it. What is left is deleted next time.
        shutil.rmtree(folder, ignore_errors=True)
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
