"""The errors that end a command: what they say, and with which exit code."""

from __future__ import annotations

from typing import Any


class CommandError(Exception):
    """An error that is about the input or the machine, not about a mistake in the program.

    A command reports it without a traceback; `dhr_batch.pipeline.cli.output` does so for all of
    them. Its text is all parts in one, for logs and for messages that quote it.

    Args:
        what: What was asked for, or a whole message in itself.
        why: Why it cannot be.
        way_out: What to do about it, in the imperative. No part ends in a full stop.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", way_out: str = "") -> None:
        self.what, self.why, self.way_out = what, why, way_out
        between = "\n" if "\n" in self.reason else "; "
        super().__init__(between.join(filter(None, (self.reason, way_out))))

    @property
    def reason(self) -> str:
        """What was asked for and why it cannot be, without the way out."""
        return ": ".join(filter(None, (self.what, self.why)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses have other arguments, and those that are OSErrors lose their text otherwise.
        return type(self).__new__, (type(self),), vars(self) | {"args": self.args}


class Refused(CommandError):
    """What was asked cannot be done as it was asked. Exit code 2."""

    exit_code = 2


class NoRun(Refused):
    """A place that holds no run."""


class StorageError(CommandError, OSError):
    """A place of images or of a run cannot be used now; what is committed stays. Exit code 1."""


class RunFailed(CommandError):
    """A run cannot be finished now; what is committed stays. Exit code 1."""

    GOES_ON = "finished shards are kept; the same command goes on from here"
