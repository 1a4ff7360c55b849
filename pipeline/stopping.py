"""How a user, or a machine that is about to go away, asks a run to stop."""

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
_GLANCE_SECONDS = 0.1
_stopper: Stopper | None = None


class Interrupted(KeyboardInterrupt):
    """The user asked to stop at once. Exit code 130."""


class Stopper:
    """asked: finish the shards in flight and start no more. now: do not even finish these."""

    asked = False
    now = False
    _told = False

    def tell(self, say: Callable[[str], None]) -> None:
        """Say once what was asked. Not done by the handler, which may interrupt another print."""
        if self.asked and not self._told:
            self._told = True
            say("stopping after the shards in flight; Ctrl-C again stops now")


@contextmanager
def signals(stopper: Stopper) -> Iterator[None]:
    """First Ctrl-C, or SIGTERM: `asked`. Second Ctrl-C: `now`.

    SIGTERM never means `now`: machines that will be taken away may send it more than once.
    To be entered after `ray.init`, which sets a handler of its own.
    """
    global _stopper

    def handle(number: int, _frame: FrameType | None) -> None:
        if not stopper.asked:
            stopper.asked = True
        elif number == signal.SIGINT:
            stopper.now = True

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    _stopper = stopper
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def forgotten() -> Iterator[None]:
    """A run, with what follows its loop: until then nothing waits after a second Ctrl-C."""
    global _stopper
    try:
        yield
    finally:
        _stopper = None


def pause(seconds: float) -> None:
    """Sleep. Raises Interrupted as soon as `now` is asked."""
    end = time.monotonic() + seconds
    _check()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _GLANCE_SECONDS))
        _check()


def interruptible(work: Callable[[], T]) -> T:
    """Do work that may hang where no signal reaches it, such as a request in compiled code.

    Raises what the work raises, or Interrupted, or KeyboardInterrupt from a handler; the work then
    goes on until the process ends, which is like a kill at this moment.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    answers: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put(([work()], None))
        except BaseException as error:
            answers.put(([], error))

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            result, error = answers.get(timeout=_GLANCE_SECONDS)
        except Empty:
            _check()
            continue
        if error is not None:
            raise error
        return result[0]


def _check() -> None:
    if _stopper is not None and _stopper.now:
        raise Interrupted
