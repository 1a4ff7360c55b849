"""The log of a worker: a file in the run folder, or uploaded to an object store as it grows."""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import os
import re
import tempfile
import threading
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.printable import LogFormatter
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.objects import ObjectStorage

LOGS = "_state/logs"
# The most bytes that are uploaded. Of a longer log, this is the end.
_LONGEST = 2**20
_END_SECONDS = 5.0
# The beginning of a log: nothing yet, a time, or the first words of faulthandler.
_BEGINNING = re.compile(rb"$|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,|Fatal Python error")

log = logging.getLogger("dhr_batch")


class WorkerLog:
    """Stores the log messages of this process, and tracebacks of crashes in compiled code.

    For a run in an object store, the file is in TMPDIR. If a worker crashes, the next worker with
    its number on this machine continues the file and uploads it.

    Args:
        out: The place of the run.
        number: The number of the worker.

    Raises:
        OSError: If the file cannot be written.
    """

    def __init__(self, out: Storage, number: int) -> None:
        self._out = out
        folder = out.root / LOGS if isinstance(out, LocalStorage) else _folder_of(out)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = _free(folder / f"worker-{number}.log")
        # The name has the time, so that a later start does not overwrite an earlier upload.
        started = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        self.key = f"{LOGS}/worker-{number}-{os.uname().nodename}-{started}.log"
        self._uploaded = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._handler = logging.StreamHandler(self.path.open("a", encoding="utf-8"))
        self._handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._handler)
        log.setLevel(logging.INFO)
        # Python's own tracebacks do not cover crashes in compiled code.
        faulthandler.enable(self._handler.stream)

    def sync(self) -> None:
        """Start to upload a changed log in the background. A failed upload is only logged."""
        if isinstance(self._out, LocalStorage):
            return
        # Several shards may end at once.
        with self._lock:
            busy = self._thread is not None and self._thread.is_alive()
            size = self._uploaded
            # TMPDIR may have been cleaned.
            with suppress(OSError):
                size = self.path.stat().st_size
            if busy or size == self._uploaded:
                return
            self._uploaded = size
            self._thread = threading.Thread(target=self._upload, name="log", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Upload the rest, for a few seconds at most, and delete the file in TMPDIR."""
        if isinstance(self._out, LocalStorage):
            return
        for _ in range(2):
            # Messages may have been added during the first upload.
            if self._thread is not None:
                self._thread.join(_END_SECONDS)
            self.sync()
        if self._thread is not None:
            self._thread.join(_END_SECONDS)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _upload(self) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST))
                content = file.read()
            ObjectStorage(self._out.address, patience=0).replace(self.key, content)
        except OSError as error:
            log.warning("this log could not be uploaded: %s", error)


def _free(path: Path) -> Path:
    """Return the path if it is a log of this program or does not exist, else a similar one."""
    try:
        with path.open("rb") as file:
            ours = _BEGINNING.match(file.read(30))
    except FileNotFoundError:
        return path
    except IsADirectoryError:
        ours = None
    return path if ours else _free(path.with_stem(f"{path.stem}-"))


def _folder_of(out: Storage) -> Path:
    """Return the folder on this machine for the logs of a run in an object store."""
    place = Path(tempfile.gettempdir()) / f"dhr-batch.logs-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise StorageError(
            str(place), "it belongs to another user", "delete it, or set TMPDIR to another folder"
        )
    return place / hashlib.sha256(out.address.encode()).hexdigest()[:16]
