"""Text that comes from files, archives, settings or URLs, made safe for the place it is shown in.

Names may hold anything: control codes of terminals, line feeds, passwords of URLs, and beginnings
that spreadsheets take for formulas. JSON and Parquet keep texts as they are.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")
# Control codes, halves of surrogate pairs, line separators, the codes that turn the direction of a
# text, with which `gpj.exe` is shown as `exe.jpg`, and what XML does not allow.
_CODES = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_USER = re.compile(r"(?i)\b(https?://|[a-z][a-z0-9+.-]*://(?=[^/?#\s@]*:))[^/?#\s]*@")
_SIGNED = re.compile(
    r"(?i)(://[^\s?]+\?)[^\s'\"]*(?:credential|key|password|secret|sig|token)[^\s'\"]*"
)
# With the full-width forms of these characters, and with control codes, which spreadsheets skip.
_FORMULA = re.compile(r"[=+\-@\uff0b\uff0d\uff1d\uff20\x00-\x1f\x7f-\x9f]")


def printable(text: object, keep: str = "") -> str:
    r"""Replace control codes by escape sequences, so that a name is one line and changes nothing.

    Args:
        text: The text.
        keep: Codes that stay, such as the line feeds of a text that has several lines.

    >>> print(printable("two\nlines\x1b[31m"))
    two\nlines\x1b[31m
    """
    return _CODES.sub(
        lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], str(text)
    )


def first_names(names: Iterable[str], most: int = 5) -> str:
    """Return the first few names as text, and the number of the others.

    >>> first_names(["a.png", "b.png", "c.png", "d.png"], most=2)
    'a.png, b.png and 2 more'
    """
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return printable(", ".join(found[:most])) + more


def without_secrets(text: str) -> str:
    """Hide the users, passwords and signatures of all URLs in a text.

    >>> without_secrets("no answer from https://me:secret@example.org/x?sig=abc")
    'no answer from https://***@example.org/x?***'
    """
    return _SIGNED.sub(r"\1***", _USER.sub(r"\1***@", text))


def csv_cell(value: T) -> T | str:
    """Keep a text from being a formula in a spreadsheet, by an apostrophe in front of it.

    Numbers stay as they are.

    >>> csv_cell("=1+2.png"), csv_cell("a.png"), csv_cell(-1.5)
    ("'=1+2.png", 'a.png', -1.5)
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


class LogFormatter(logging.Formatter):
    """Formats log messages without control codes and secrets, each message on one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the message, a traceback, and the text that was given as `extra["details"]`."""
        lines = (super().format(record), getattr(record, "details", ""))
        return printable(without_secrets("\n".join(filter(None, lines))), keep="\n\t")
