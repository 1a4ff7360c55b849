"""How a user, or a machine that is about to go away, asks a run to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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

    def handle(number: int, _frame: FrameType | None) -> None:
        if not stopper.asked:
            stopper.asked = True
        elif number == signal.SIGINT:
            stopper.now = True

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
