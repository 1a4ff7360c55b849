"""The log of a worker: a file of the run where that is a folder, else uploaded as it grows."""

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
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.objects import ObjectStorage

LOGS = "_state/logs"
# Of a longer log, the end is uploaded.
_LONGEST = 2**20
_END_SECONDS = 5.0
# Of a log: nothing yet, a line of it, or what faulthandler says first.
_BEGINNING = re.compile(rb"$|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,|Fatal Python error")

log = logging.getLogger("dhr_batch")


class WorkerLog:
    """Takes what this process logs, and where it crashes in compiled code.

    For a run in an object store the file lies in TMPDIR. A worker that ends by itself cannot upload
    it any more; the next one of its number on this machine goes on with the file and does.
    Raises OSError where the file cannot be written.
    """

    def __init__(self, out: Storage, number: int) -> None:
        self._out = out
        folder = out.root / LOGS if isinstance(out, LocalStorage) else _folder_of(out)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = _free(folder / f"worker-{number}.log")
        # A later start would else overwrite what an earlier one has uploaded.
        started = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
        self.key = f"{LOGS}/worker-{number}-{os.uname().nodename}-{started}.log"
        self._uploaded = 0
        self._thread: threading.Thread | None = None
        self._handler = logging.StreamHandler(self.path.open("a", encoding="utf-8"))
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._handler)
        log.setLevel(logging.INFO)
        # Where a crash in compiled code happened is known to nobody else.
        faulthandler.enable(self._handler.stream)

    def sync(self) -> None:
        """Begin to upload what is new; never waits, and no run fails for it."""
        if isinstance(self._out, LocalStorage):
            return
        busy = self._thread is not None and self._thread.is_alive()
        size = self._uploaded
        # Someone may clean TMPDIR.
        with suppress(OSError):
            size = self.path.stat().st_size
        if busy or size == self._uploaded:
            return
        self._uploaded = size
        self._thread = threading.Thread(target=self._upload, name="log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Upload the rest, for a few seconds at most; the file in TMPDIR is deleted."""
        if isinstance(self._out, LocalStorage):
            return
        for _ in range(2):
            # What was new may have come during an upload.
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
            log.warning("this log was not uploaded: %s", error)


def _free(path: Path) -> Path:
    """A log of this program, or a name that nothing has yet."""
    try:
        with path.open("rb") as file:
            ours = _BEGINNING.match(file.read(30))
    except FileNotFoundError:
        return path
    except IsADirectoryError:
        ours = None
    return path if ours else _free(path.with_stem(f"{path.stem}-"))


def _folder_of(out: Storage) -> Path:
    """Where the logs of a run in an object store lie on this machine."""
    place = Path(tempfile.gettempdir()) / f"dhr-batch.logs-{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise StorageError(
            str(place), "it belongs to another user", "delete it, or set TMPDIR to another folder"
        )
    return place / hashlib.sha256(out.address.encode()).hexdigest()[:16]
