"""Errors that end a command, and what they say."""

from __future__ import annotations


class Refused(Exception):
    """The run cannot go on as asked; the message says why and what to do. Exit code 2."""


class StorageError(OSError):
    """A place of images or of a run cannot be used now; what is committed stays. Exit code 1."""


class ReportError(RuntimeError):
    """A report cannot be made; the message says why and what to do."""
