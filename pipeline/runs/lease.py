"""One driver per run: the lease that a driver holds while it works on a run.

On a local disk the lease is a file lock, which the kernel frees when the process ends. On an object
store it is an object that the holder rewrites every few seconds, each time on the condition that
nobody else did. A holder on the same machine whose process is gone is replaced at once, any other
one when it has not written for `timeout` seconds by the clock of the store. A holder counts itself
out earlier, after 0.7 of that time, so that the two never work at once as long as clocks run at
about the same speed. `pipeline/runs/folder.py` says why even a holder that was frozen between its
last check and its write does no harm.
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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from dhr_batch.pipeline import stopping
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.runs.records import JsonRecord
from dhr_batch.pipeline.storage.base import Object, Storage, Version
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.objects import ObjectStorage

KEY = "_state/lease"
_BEATS_PER_TIMEOUT = 6
_VALID = 0.7
# Stores give the time of a write in whole seconds.
_RESOLUTION = 1.0
_RELEASE_PATIENCE = 5.0
_GLANCE = 0.1
# Unlike the monotonic clock it goes on while the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder(JsonRecord):
    """Who holds a lease. boot: of the kernel and the namespace in which the pid means something.

    Of a lease in an object store, token: its own; timeout: seconds without a sign of life after
    which it lapses; beat: number of the last one; released: whether it was given back.
    """

    host: str | None = None
    pid: int | None = None
    boot: str | None = None
    token: str | None = None
    timeout: float | None = None
    beat: int | None = None
    released: bool | None = None


class LeaseLost(StorageError):
    """Another driver may have taken over the run; this one has to stop."""


class Lease(ABC):
    """The right to commit to one run."""

    @abstractmethod
    def take(self) -> None:
        """Raises Refused, naming the holder, where another driver is at work."""

    @abstractmethod
    def check(self) -> None:
        """Raises LeaseLost where the right is gone. Cheap: asks no server."""

    @abstractmethod
    def release(self) -> None:
        """Give the right back; does nothing where it is not held."""

    @abstractmethod
    def holder(self) -> Holder | None:
        """Who holds the right now: host and pid, as far as known; None: nobody. Writes nothing."""


def lease(storage: Storage, timeout: float) -> Lease:
    """The lease of a run. timeout: seconds without a sign of life after which it lapses."""
    if isinstance(storage, ObjectStorage):
        return ObjectLease(storage, timeout)
    assert isinstance(storage, LocalStorage)
    return FileLease(storage)


class FileLease(Lease):
    """A lock on `_state/lease`."""

    def __init__(self, storage: LocalStorage) -> None:
        self._place, self._path = storage.place, storage.root / KEY
        self._handle: int | None = None

    def take(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Perhaps it was only asked for its holder, which takes no time.
                time.sleep(_GLANCE)
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
            raise LeaseLost(str(self._place), "it is not held by this process")
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
            handle = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(os.read(handle, 1000))
        finally:
            os.close(handle)
        return None


class ObjectLease(Lease):
    """The object `_state/lease`, kept alive by a thread."""

    def __init__(self, storage: ObjectStorage, timeout: float) -> None:
        self._storage, self._timeout = storage, timeout
        self._record = replace(_identity(), token=uuid.uuid4().hex, timeout=timeout, beat=0)
        self._version: Version | None = None
        self._confirmed = 0.0
        self._lost = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        there = self._storage.get(KEY)
        if there is not None:
            _require_own(self._storage.locate(KEY), there.content)
            self._require_free(there)
        began = time.clock_gettime(_CLOCK)
        content, before = self._content(), there.version if there else None
        self._version = self._storage.swap(KEY, content, before)
        if self._version is None:
            there = self._storage.get(KEY)
            raise _in_use(self._storage.place, _parse(there.content if there else b""))
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
                f"this driver could not confirm for {silent:.0f} s that the run is still its own, "
                "and stops",
                "the same command goes on from here",
            )

    def release(self) -> None:
        if self._thread is None or self._version is None:
            return
        self._stop.set()
        # It may be waiting for an answer.
        stopping.interruptible(self._thread.join)
        self._record = replace(self._record, released=True)
        if not self._lost:
            # It lapses by itself: not worth a wait where the store does not answer.
            storage = ObjectStorage(self._storage.place, _RELEASE_PATIENCE)
            storage.swap(KEY, self._content(), self._version)
        self._version = self._thread = None

    def holder(self) -> Holder | None:
        """By the clock of this host: that of the store could only be learnt by a write."""
        there = self._storage.get(KEY)
        if there is None or _is_free(holder := _parse(there.content)):
            return None
        age = (datetime.now(UTC) - there.modified).total_seconds()
        return holder if age < self._lapses(holder) else None

    def _content(self) -> bytes:
        return _dumps(self._record)

    def _require_free(self, there: Object) -> None:
        holder = _parse(there.content)
        if _is_free(holder):
            return
        timeout = self._lapses(holder)
        age = (self._storage.now() - there.modified).total_seconds()
        if age < timeout:
            hint = f"; if it is dead, its claim lapses in {timeout - age:.0f} s"
            raise _in_use(self._storage.place, holder, hint)

    def _lapses(self, holder: Holder) -> float:
        """Seconds after which a silent holder is replaced."""
        timeout = self._timeout if holder.timeout is None else holder.timeout
        return float(timeout) + _RESOLUTION

    def _beat(self) -> None:
        # One try per beat: a call that goes on trying would itself delay the sign of life.
        storage, beat = ObjectStorage(self._storage.place, patience=0), 0
        while not self._stop.wait(self._timeout / _BEATS_PER_TIMEOUT):
            began = time.clock_gettime(_CLOCK)
            beat += 1
            self._record = replace(self._record, beat=beat)
            try:
                version = storage.swap(KEY, self._content(), self._version)
                if version is None:
                    version = self._after_a_lost_answer(storage.get(KEY))
            except StorageError as error:
                log.warning("the lease could not be renewed: %s", error)
                continue
            if version is None:
                return
            self._version, self._confirmed = version, began

    def _after_a_lost_answer(self, there: Object | None) -> Version | None:
        """The version where an earlier beat of ours had arrived after all; else None."""
        holder = _parse(there.content) if there else Holder()
        if there and holder.token == self._record.token:
            return there.version
        self._lost = f"{self._storage.place}: {_who(holder)} took over this run; this one stops"
        return None


def _identity() -> Holder:
    return Holder(os.uname().nodename, os.getpid(), _boot())


def _boot() -> str:
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # Without /proc nobody can be told dead from here: only the timeout counts.
        return ""


def _is_free(holder: Holder) -> bool:
    """Whether a lease was given back, or its holder is a process of this machine that is gone."""
    return bool(holder.released) or _is_dead(holder)


def _is_dead(holder: Holder) -> bool:
    here = _identity()
    if not here.boot or (holder.host, holder.boot) != (here.host, here.boot):
        return False
    try:
        os.kill(int(holder.pid or 0), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # Somebody else's process, and alive.
    return False


def _parse(content: bytes) -> Holder:
    try:
        return Holder.from_json(json.loads(content))
    except ValueError:
        return Holder()


def _require_own(place: str, content: bytes) -> None:
    """Raises Refused for a file of this name that no driver has written. Empty: killed before."""
    holder = _parse(content)
    if content and holder.pid is None and holder.released is None:
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
