"""The errors that end a command, with their messages and exit codes."""

from __future__ import annotations

from typing import Any

from dhr_batch.pipeline.printable import without_secrets


class CommandError(Exception):
    """An error that is about the input or the machine, not about a mistake in the program.

    `dhr_batch.pipeline.cli.output` reports such errors for all commands, without a traceback.
    The text of the exception joins all parts, for logs and for messages that quote it. Passwords in
    URLs are hidden.

    Args:
        what: What was requested, or a complete message.
        why: Why it is not possible.
        way_out: The remedy, in the imperative. No part ends with a full stop.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", way_out: str = "") -> None:
        self.what, self.why, self.way_out = map(without_secrets, (what, why, way_out))
        between = "\n" if "\n" in self.reason else "; "
        super().__init__(between.join(filter(None, (self.reason, way_out))))

    @property
    def reason(self) -> str:
        """What was requested and why it is not possible, without the remedy."""
        return ": ".join(filter(None, (self.what, self.why)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses have other arguments, and those that are OSErrors lose their text otherwise.
        return type(self).__new__, (type(self),), vars(self) | {"args": self.args}


class Refused(CommandError):
    """The request is invalid: an option or an input does not allow it. Exit code 2."""

    exit_code = 2


class NoRun(Refused):
    """A folder or URL does not contain a run."""


class StorageError(CommandError, OSError):
    """The storage of images or of a run is unavailable. Committed shards stay. Exit code 1."""


class RunFailed(CommandError):
    """A run cannot be finished now. Committed shards stay. Exit code 1."""

    GOES_ON = "finished shards are kept; the same command goes on from here"
