"""JSON files of dhr-batch that contain a checksum of themselves, and the reading of damaged ones.

The first line of such a file is its key `sha256`: the checksum of all bytes behind the digits. The
file is ordinary JSON, and every bit of it counts. A file without this line was written by an older
version, or somebody has changed it on purpose and removed the line; it is read as it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dhr_batch.pipeline.errors import CommandError

KEY = "sha256"
# The advice for whoever has changed a file on purpose.
ON_PURPOSE = f"if it was changed on purpose, delete its first key {KEY!r}"
_HEAD = f'{{\n "{KEY}": "'.encode()
_DIGITS = 64
_CHECKSUM = re.compile(r"[0-9a-fA-F]{64}")


class Changed(ValueError):
    """A file does not match its own checksum."""


def dumps(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object, which must not be empty, with its checksum."""
    return seal([json.dumps(content, ensure_ascii=False, indent=1)[1:].encode()])


def seal(text: Iterable[bytes]) -> bytes:
    """Return the text of a JSON object with its checksum.

    Args:
        text: Pieces of the text behind the opening brace, the first of which is a line break.
    """
    file = io.BytesIO()
    file.write(_HEAD + bytes(_DIGITS) + b'",')
    file.writelines(text)
    with file.getbuffer() as content:
        content[len(_HEAD) : len(_HEAD) + _DIGITS] = _sum(content)
    return file.getvalue()


def loads(text: bytes) -> dict[str, Any]:
    """Parse a JSON object, and check the checksum that it contains. The result lacks its key.

    Raises:
        Changed: If the text does not match its checksum.
        ValueError: If the text is not a JSON object.
    """
    with damage():
        found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    check(text, found)
    return found


def check(text: bytes, found: dict[str, Any]) -> None:
    """Check that a file matches its checksum if it has one, and remove the key of the checksum.

    Args:
        text: The content of the file.
        found: The same, parsed.

    Raises:
        Changed: If it does not match.
    """
    if has_checksum(text):
        if text[len(_HEAD) : len(_HEAD) + _DIGITS] != _sum(text):
            raise Changed(f"its content does not match the {KEY} in its first line")
        del found[KEY]
    else:
        # The name of the key may be damaged, or another program has written the file again.
        first = next(iter(found.values()), None)
        if isinstance(first, str) and _CHECKSUM.fullmatch(first):
            raise Changed(f"its first line is not the {KEY} that was written")


def has_checksum(text: bytes) -> bool:
    """Whether a file begins with a checksum of itself."""
    return text.startswith(_HEAD)


def _sum(text: bytes | memoryview) -> bytes:
    with memoryview(text) as content:
        return hashlib.sha256(content[len(_HEAD) + _DIGITS :]).hexdigest().encode()


@contextmanager
def damage() -> Iterator[None]:
    """Convert everything that damaged content can raise to a ValueError.

    Content may be nested deeper than Python allows, and its values may have any type.
    """
    try:
        yield
    except (CommandError, ValueError):
        raise
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
