"""What a worker waits for: a file system that went away lets it wait for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

# A place of images may take as long to answer even where `image_timeout` is shorter: an object
# store is asked again for a minute, and ends the run by itself.
_READ_SECONDS = 120.0
# The folder of a run may take long to take gigabytes. An object store ends the run by itself.
_WRITE_SECONDS = 600.0


class Waits:
    """Of the thread that reads and of the one that writes: since when, where, how long it may take.

    timeout: `image_timeout` in seconds; None: nothing is ever stuck.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._waits: dict[str, tuple[float, str, float]] = {}

    def reading(self, place: str) -> AbstractContextManager[None]:
        return self._during("reader", place, _READ_SECONDS)

    def writing(self, place: str) -> AbstractContextManager[None]:
        return self._during("writer", place, _WRITE_SECONDS)

    def stuck(self, now: float) -> str:
        """Which place does not answer, "" while all do. now: of `time.monotonic`."""
        if self._timeout is None:
            return ""
        for since, place, least in list(self._waits.values()):
            if (seconds := now - since) > max(self._timeout, least):
                return f"no answer from {place} for {seconds:.0f} s: is its file system mounted?"
        return ""

    @contextmanager
    def _during(self, who: str, place: str, least: float) -> Iterator[None]:
        self._waits[who] = (time.monotonic(), place, least)
        try:
            yield
        finally:
            del self._waits[who]
