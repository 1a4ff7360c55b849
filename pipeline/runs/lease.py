"""The lease that a driver holds while it works on a run, so that a run has only one driver.

In a local folder, the lease is a file lock, which the kernel releases when the process ends. In an
object store, it is an object that the holder rewrites every few seconds, each time on the condition
that nobody else has rewritten it. A holder on the same machine whose process has ended is replaced
immediately. Any other holder is replaced when it has not rewritten the object for `timeout`
seconds, by the clock of the store. A holder that cannot rewrite the object gives up earlier, after
0.7 of this time. Two drivers therefore never work at the same time, provided that the clocks run at
about the same speed. `pipeline/runs/folder.py` explains why even a holder that was frozen between
its last check and its write does no harm.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dhr_batch.pipeline import sealed, stopping
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.runs.records.json_record import JsonRecord
from dhr_batch.pipeline.storage.base import Object, Storage, Version
from dhr_batch.pipeline.storage.local import LocalStorage, make_folder
from dhr_batch.pipeline.storage.objects import ObjectStorage
from dhr_batch.stages.networks.files.regular import opened

KEY = "_state/lease"
_BEATS_PER_TIMEOUT = 6
_VALID = 0.7
# What every lease begins with.
_BEGIN = b'{"host": '
# Stores report the time of a write in whole seconds.
_RESOLUTION = 1.0
_RELEASE_PATIENCE = 5.0
# The time in seconds after which a reader has released the lock that `holder` takes.
_READ_TIME = 0.1
# Unlike the monotonic clock, this clock also advances while the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder(JsonRecord):
    """The holder of a lease. The attributes from `token` on exist only in object stores.

    Attributes:
        host: The name of the machine.
        pid: The process.
        boot: Identifies the boot of the kernel and the namespace in which `pid` is valid.
        token: Identifies the lease.
        timeout: The time in seconds without a sign of life after which the lease expires.
        beat: The number of the last sign of life.
        released: Whether the holder has released the lease.
    """

    host: str | None = None
    pid: int | None = None
    boot: str | None = None
    token: str | None = None
    timeout: float | None = None
    beat: int | None = None
    released: bool | None = None


class LeaseLost(StorageError):
    """Another driver may have taken over the run, so this one must stop."""


class Lease(ABC):
    """The right to commit to one run."""

    @abstractmethod
    def take(self) -> None:
        """Acquire the lease.

        Raises:
            Refused: If another driver holds the lease. The message names it.
        """

    @abstractmethod
    def check(self) -> None:
        """Check that this process still holds the lease. This takes no request to a server.

        Raises:
            LeaseLost: If it does not.
        """

    @abstractmethod
    def release(self) -> None:
        """Release the lease. Does nothing if this process does not hold it."""

    @abstractmethod
    def holder(self) -> Holder | None:
        """Return the holder of the lease, or None if there is none. Nothing is written.

        The host and pid of the holder are None if they are unknown.
        """


def lease(storage: Storage, timeout: float) -> Lease:
    """Return the lease of a run.

    Args:
        storage: The place of the run.
        timeout: The time in seconds without a sign of life after which the lease expires.
    """
    if isinstance(storage, ObjectStorage):
        return ObjectLease(storage, timeout)
    assert isinstance(storage, LocalStorage)
    return FileLease(storage)


class FileLease(Lease):
    """A lock on the file `_state/lease`."""

    def __init__(self, storage: LocalStorage) -> None:
        self._place, self._path = storage.place, storage.root / KEY
        self._handle: int | None = None

    def take(self) -> None:
        make_folder(self._path.parent)
        with suppress(FileNotFoundError):
            opened(self._path).close()  # A pipe would be waited for.
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Perhaps a reader has called `holder`, which holds the lock for a moment.
                time.sleep(_READ_TIME)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = _parse(os.read(handle, 1000))
            os.close(handle)
            raise _in_use(self._place, record) from None
        try:
            _require_own(str(self._path), os.read(handle, 1000))
        except Refused:
            os.close(handle)
            raise
        os.ftruncate(handle, 0)
        os.pwrite(handle, _dumps(_identity()), 0)
        self._handle = handle

    def check(self) -> None:
        if self._handle is None:
            raise LeaseLost(str(self._place), "this process does not hold the lease of the run")
        try:
            same = os.path.samestat(os.fstat(self._handle), os.stat(self._path))
        except FileNotFoundError:
            same = False
        if not same:
            raise LeaseLost(
                str(self._path), "it was deleted or replaced during the run", "start again"
            )

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def holder(self) -> Holder | None:
        try:
            file = opened(self._path)
        except FileNotFoundError:
            return None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _parse(file.read(1000))
        return None


class ObjectLease(Lease):
    """The object `_state/lease`, which a thread rewrites regularly."""

    def __init__(self, storage: ObjectStorage, timeout: float) -> None:
        self._storage, self._timeout = storage, timeout
        self._record = replace(_identity(), token=uuid.uuid4().hex, timeout=timeout, beat=0)
        self._version: Version | None = None
        self._confirmed = 0.0
        self._lost = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        stored = self._storage.get(KEY)
        if stored is not None:
            _require_own(self._storage.locate(KEY), stored.content)
            self._require_free(stored)
        began = time.clock_gettime(_CLOCK)
        content, before = self._content(), stored.version if stored else None
        self._version = self._storage.swap(KEY, content, before)
        if self._version is None:
            stored = self._storage.get(KEY)
            raise _in_use(self._storage.place, _parse(stored.content if stored else b""))
        self._confirmed = began
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        if self._lost:
            raise LeaseLost(self._lost)
        silent = time.clock_gettime(_CLOCK) - self._confirmed
        if self._version is None or silent > _VALID * self._timeout:
            raise LeaseLost(
                self._storage.place,
                f"this driver could not renew its lease of the run for {silent:.0f} s, and stops",
                "the same command goes on from here",
            )

    def release(self) -> None:
        if self._thread is None or self._version is None:
            return
        self._stop.set()
        # The thread may be waiting for an answer of the store.
        stopping.interruptible(self._thread.join)
        self._record = replace(self._record, released=True)
        if not self._lost:
            # Without an answer of the store, the lease expires anyway: do not wait long for it.
            storage = ObjectStorage(self._storage.place, _RELEASE_PATIENCE)
            storage.swap(KEY, self._content(), self._version)
        self._version = self._thread = None

    def holder(self) -> Holder | None:
        # By the clock of this machine: only a write would give the time of the store.
        stored = self._storage.get(KEY)
        if stored is None or _is_free(holder := _parse(stored.content)):
            return None
        age = (datetime.now(UTC) - stored.modified).total_seconds()
        return holder if age < self._expires_after(holder) else None

    def _content(self) -> bytes:
        return _dumps(self._record)

    def _require_free(self, stored: Object) -> None:
        holder = _parse(stored.content)
        if _is_free(holder):
            return
        timeout = self._expires_after(holder)
        age = (self._storage.now() - stored.modified).total_seconds()
        if age < timeout:
            hint = f"; if it has crashed, its lease expires in {timeout - age:.0f} s"
            raise _in_use(self._storage.place, holder, hint)

    def _expires_after(self, holder: Holder) -> float:
        """Return the time in seconds without a sign of life after which a holder is replaced."""
        timeout = self._timeout if holder.timeout is None else holder.timeout
        return float(timeout) + _RESOLUTION

    def _beat(self) -> None:
        # Each beat tries only once: a call with retries would delay the next sign of life.
        storage, beat = ObjectStorage(self._storage.place, patience=0), 0
        while not self._stop.wait(self._timeout / _BEATS_PER_TIMEOUT):
            began = time.clock_gettime(_CLOCK)
            beat += 1
            self._record = replace(self._record, beat=beat)
            try:
                version = storage.swap(KEY, self._content(), self._version)
                if version is None:
                    version = self._own_version(storage.get(KEY))
            except StorageError as error:
                log.warning("the lease could not be renewed: %s", error)
                continue
            if version is None:
                return
            self._version, self._confirmed = version, began

    def _own_version(self, stored: Object | None) -> Version | None:
        """Return the version of the stored lease if it is the one of this process, or else None.

        A write of an earlier beat may have succeeded although its answer was lost.
        """
        holder = _parse(stored.content) if stored else Holder()
        if stored and holder.token == self._record.token:
            return stored.version
        self._lost = f"{self._storage.place}: {_who(holder)} took over this run; this driver stops"
        return None


def _identity() -> Holder:
    return Holder(os.uname().nodename, os.getpid(), _boot())


def _boot() -> str:
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # Without /proc, this machine cannot tell whether a holder has ended, except by the timeout.
        return ""


def _is_free(holder: Holder) -> bool:
    """Whether a lease was released, or its holder is a process of this machine that has ended."""
    return bool(holder.released) or _has_ended(holder)


def _has_ended(holder: Holder) -> bool:
    own = _identity()
    if not own.boot or (holder.host, holder.boot) != (own.host, own.boot):
        return False
    try:
        os.kill(int(holder.pid or 0), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # The process of another user is still running.
    return False


def _parse(content: bytes) -> Holder:
    try:
        with sealed.damage():
            return Holder.from_json(json.loads(content))
    except ValueError:
        return Holder()


def _require_own(place: str, content: bytes) -> None:
    """Check that a driver has written the file.

    It may be empty or cut, if the driver was killed or power was lost while it was written.

    Raises:
        Refused: If another program has written it.
    """
    holder = _parse(content)
    begins = _BEGIN.startswith(content.strip(b"\0")[: len(_BEGIN)])
    if not begins and holder.pid is None and holder.released is None:
        raise Refused(place, "it is not the lease of a run, but another file", "move it away")


def _dumps(holder: Holder) -> bytes:
    return json.dumps(holder.to_json()).encode()


def _who(holder: Holder) -> str:
    if holder.pid is None:
        return "another process"
    return f"process {holder.pid} on {holder.host or 'an unknown host'}"


def _in_use(place: str, holder: Holder, hint: str = "") -> Refused:
    way_out = f"wait for it to end, stop it, or choose another folder with --out{hint}"
    return Refused(place, f"it is in use by {_who(holder)}", way_out)
