"""Requests to stop a run: Ctrl-C from the user, SIGTERM from a machine that will be shut down."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.1
_stopper: Stopper | None = None


class Interrupted(KeyboardInterrupt):
    """The user pressed Ctrl-C a second time to stop at once. Exit code 130."""


class Stopper:
    """The request to stop a run, set by signal handlers and read by the loop of the run.

    Attributes:
        requested: Finish the shards in flight and start no others.
        immediate: Do not even finish the shards in flight.
    """

    requested = False
    immediate = False
    _announced = False

    def announce(self, say: Callable[[str], None]) -> bool:
        """Report the request once. A signal handler cannot: it may interrupt another print.

        Returns:
            Whether it was reported by this call.
        """
        if not self.requested or self._announced:
            return False
        self._announced = True
        say("stopping after the shards in flight; Ctrl-C again stops now")
        return True


@contextmanager
def signals(stopper: Stopper) -> Iterator[None]:
    """Set `requested` on the first Ctrl-C or SIGTERM, and `immediate` on the second Ctrl-C.

    SIGTERM never sets `immediate`: a machine that will be shut down may send it more than once.
    Enter this context after `ray.init`, which installs a handler of its own. Only the main thread
    of a process can handle signals: in another one nothing is requested.
    """
    global _stopper

    def handle(number: int, _frame: FrameType | None) -> None:
        if not stopper.requested:
            stopper.requested = True
        elif number == signal.SIGINT:
            stopper.immediate = True

    numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = {n: signal.signal(n, handle) for n in numbers}
    _stopper = stopper
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def scope() -> Iterator[None]:
    """Keep requests to stop in force until the end of the block, then clear them.

    The block covers a run and the cleaning up after its loop, so that no wait in either of them
    delays a second Ctrl-C.
    """
    global _stopper
    try:
        yield
    finally:
        _stopper = None


def pause(seconds: float) -> None:
    """Sleep. Raises Interrupted as soon as an immediate stop is requested."""
    end = time.monotonic() + seconds
    _check()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _POLL_SECONDS))
        _check()


def interruptible(work: Callable[[], T]) -> T:
    """Run a function that may block where no signal reaches it, such as a request in compiled code.

    The function runs in a daemon thread while the main thread keeps handling signals. After an
    interruption that thread continues in the background until the process ends, so the function
    must tolerate being killed at any moment. In other threads the function is simply called.

    Returns:
        What `work` returns.

    Raises:
        Interrupted: After the second Ctrl-C.
        BaseException: Whatever `work` or a signal handler raises.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            results.put(([work()], None))
        except BaseException as error:
            results.put(([], error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            result, error = results.get(timeout=_POLL_SECONDS)
        except Empty:
            _check()
            continue
        if error is not None:
            raise error
        return result[0]


def _check() -> None:
    if _stopper is not None and _stopper.immediate:
        raise Interrupted
