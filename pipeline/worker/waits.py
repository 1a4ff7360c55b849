"""Detection of places that do not answer: access to a lost file system may block forever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

# The least time limit for reading an image, even if `image_timeout` is shorter. Requests to an
# object store are repeated for a minute and then end the run by themselves.
_READ_SECONDS = 120.0
# The least time limit for writing, because writing gigabytes may take long.
_WRITE_SECONDS = 600.0


class Waits:
    """The current waits of the reader thread and of the writer thread.

    Args:
        timeout: `image_timeout` in seconds; None for no limit.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._waits: dict[str, tuple[float, str, float]] = {}

    def reading(self, place: str) -> AbstractContextManager[None]:
        """Note that the reader thread waits for a place inside the `with` block."""
        return self._during("reader", place, _READ_SECONDS)

    def writing(self, place: str) -> AbstractContextManager[None]:
        """Note that the writer thread waits for a place inside the `with` block."""
        return self._during("writer", place, _WRITE_SECONDS)

    def stuck(self, now: float) -> str:
        """Return a message about a place that does not answer; "" if there is none.

        Args:
            now: The current time on the monotonic clock.
        """
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
