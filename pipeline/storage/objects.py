"""Storage in an object store (S3, Google Cloud Storage, Azure), through `obstore`.

Calls are retried after errors that may be temporary: server errors, rate limits, conflicts, lost
connections and timeouts. After `DHR_BATCH_STORAGE_PATIENCE` seconds (60) without success a call
raises StorageError, and from then on failing calls raise it without retries. A second Ctrl-C ends
the pauses between retries, and in the main thread also the wait for an answer.
"""

from __future__ import annotations

import itertools
import logging
import random
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore import exceptions
from obstore.store import from_url

from dhr_batch.pipeline import crash, stopping
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.storage import client
from dhr_batch.pipeline.storage.base import Object, Storage, Version, full_disk
from dhr_batch.pipeline.storage.client import message
from dhr_batch.pipeline.storage.scratch import scratch

T = TypeVar("T")

# Errors that no retry can help. 404 means that the bucket is missing, 301 another region.
_FINAL = (
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.NotSupportedError,
    exceptions.InvalidPathError,
    exceptions.UnknownConfigurationKeyError,
)
_FINAL_STATUS = re.compile(r"status code: (301|401|403|404|405)\b")
_LONGEST_PAUSE = 8.0

log = logging.getLogger(__name__)


class _Again(Exception):
    """The outcome of a call is unknown or incomplete, so the call has to be repeated."""


class ObjectStorage(Storage):
    """A prefix of a bucket.

    Args:
        url: Scheme, bucket and prefix.
        patience: Seconds for which a call is retried; None for the configured value.
    """

    def __init__(self, url: str, patience: float | None = None) -> None:
        self.place = self.address = url.rstrip("/")
        self._patience = client.patience() if patience is None else patience
        # A call may consist of many requests (a listing, a large upload). obstore repeats a single
        # lost request. Longer failures are handled by `_call`.
        timeout = min(30.0, max(5.0, self._patience))
        self._options = client.options(timeout, retries=3, retry_seconds=10.0)
        try:
            self._store = from_url(self.place, **self._options)
        except exceptions.BaseError as error:
            raise Refused(
                url, f"it cannot be used as a place for a run: {message(error)}", "correct the URL"
            ) from error

    @cached_property
    def files(self) -> Any:
        from obstore.fsspec import FsspecStore
        from pyarrow import fs

        scheme, _, path = self.place.partition("://")
        store = FsspecStore(scheme, **self._options)  # type: ignore[call-overload]
        return fs.SubTreeFileSystem(path, fs.PyFileSystem(fs.FSSpecHandler(store)))

    def free(self) -> int | None:
        return None

    def swap(self, key: str, content: bytes, version: Version | None) -> Version | None:
        """Write a key if it still has the given version; see `Storage.swap`.

        If the answer to a successful write is lost, the repeated write fails its condition. The
        key then already has our content, which shows that the first write succeeded. Therefore
        the content must be unique to its writer.
        """

        def attempt() -> Version | None:
            try:
                mode: Any = version or "create"
                return _version(obstore.put(self._store, key, content, mode=mode))
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
                found = self._get(key)
                unchanged = (found.version if found else None) == version
                if unchanged:
                    raise _Again(message(error)) from error
                return found.version if found and found.content == content else None

        return self._call(f"write {key}", attempt)

    def replace(self, key: str, content: bytes) -> None:
        self._call(f"write {key}", lambda: obstore.put(self._store, key, content))

    def withdraw(self, key: str, version: Version) -> bool:
        # All stores support conditional writes, but not all support conditional deletions.
        return self.swap(key, b"", version) is not None

    def get(self, key: str) -> Object | None:
        return self._call(f"read {key}", lambda: self._get(key))

    def now(self) -> datetime:
        """Return the time by the clock of the store, the only clock that all hosts share."""
        key = "_state/clock"
        if self.read(key):
            raise Refused(self.locate(key), "it was not written by dhr-batch", "move it away")
        self.replace(key, b"")
        return self._call(f"read {key}", lambda: obstore.head(self._store, key))["last_modified"]

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        with full_disk(tempfile.gettempdir()), scratch() as folder:
            path = folder / "content"

            def attempt() -> None:
                with path.open("wb") as file:
                    for chunk in obstore.get(self._store, key).stream():
                        file.write(chunk)

            self._call(f"read {key}", attempt)
            yield path

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found = self._call(
            f"list {prefix}", lambda: obstore.list(self._store, prefix or None).collect()
        )
        return {item["path"]: item["size"] for item in found}

    @contextmanager
    def stage(self, prefix: str) -> Iterator[Path]:
        with full_disk(tempfile.gettempdir()), scratch() as folder:
            yield folder
            for path in sorted(folder.iterdir()):
                self._upload(path, f"{prefix}/{path.name}")
                crash.at("staged-one-table")

    def _upload(self, path: Path, key: str) -> None:
        self._call(f"upload {key}", lambda: obstore.put(self._store, key, path))

    def publish(self, staged: str, final: str) -> bool:
        def attempt() -> bool:
            try:
                obstore.copy(self._store, staged, final)
            except FileNotFoundError:
                return False
            return True

        return self._call(f"copy {staged} to {final}", attempt)

    def entries(self) -> list[str]:
        def attempt() -> list[str]:
            pages = obstore.list(self._store, chunk_size=1000)
            return [item["path"] for item in next(iter(pages), [])]

        keys = [key.partition("/") for key in self._call("list", attempt)]
        return sorted({top + slash for top, slash, _ in keys if not top.startswith(".")})

    def remove(self, keys: Collection[str]) -> None:
        left = list(keys)
        if not left:
            return

        def attempt() -> None:
            try:
                obstore.delete(self._store, left)
            except FileNotFoundError:
                # Some stores report a missing object, which S3 does not. Others may be left.
                present = self.sizes()
                if remaining := [key for key in left if key in present]:
                    left[:] = remaining
                    raise _Again(f"{len(left)} objects could not be deleted") from None

        self._call(f"delete {left[0]}", attempt)

    def _get(self, key: str) -> Object | None:
        try:
            answer = obstore.get(self._store, key)
        except FileNotFoundError:
            return None
        meta = answer.meta
        return Object(bytes(answer.bytes()), _version(meta), meta["last_modified"])

    def _call(self, what: str, request: Callable[[], T]) -> T:
        """Make a request with retries. what: the request in words, for messages."""
        give_up = time.monotonic() + self._patience
        for attempt in itertools.count():
            try:
                return stopping.interruptible(request)
            except FileNotFoundError as error:
                raise StorageError(self.place, f"cannot {what}: {message(error)}") from error
            except (exceptions.BaseError, _Again) as error:
                pause = min(_LONGEST_PAUSE, 0.2 * 2**attempt) * random.uniform(0.5, 1)
                final = isinstance(error, _FINAL) or _FINAL_STATUS.search(str(error)) is not None
                if final or time.monotonic() + pause > give_up:
                    self._patience = 0.0
                    raise StorageError(
                        self.place,
                        f"cannot {what}, tried {attempt + 1} times: {message(error)}",
                        "finished shards are kept; the same command goes on from here",
                    ) from error
                log.warning("%s: cannot %s yet: %s", self.place, what, message(error))
            stopping.pause(pause)
        raise AssertionError("unreachable")


def _version(meta: Any) -> Version:
    return {key: meta[key] for key in ("e_tag", "version") if meta[key]}
