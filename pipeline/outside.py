"""Code outside of dhr-batch, `package.module:Class`, that settings name.

Such a module is imported, so it runs. A user may name one: by `-c`, `--set` or an option. Data may
not: neither the description of a dataset nor a run that somebody else made.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages.registry import OUTSIDE

_OWN = "dhr_batch."


def members(settings: Any) -> set[str]:
    """Return the names of members from other packages in settings.

    >>> members({"refine": {"name": "mine.fast:Refiner"}, "generator": "tiny"})
    {'mine.fast:Refiner'}
    """
    return {
        name
        for text in texts(settings)
        for name in re.split(r"[,\s]+", text)
        if OUTSIDE.fullmatch(name) and not name.startswith(_OWN)
    }


def texts(value: Any) -> Iterator[str]:
    """Yield all texts in settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts(part)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for part in value:
            yield from texts(part)


def check(settings: Any, place: str, named: Collection[str] = (), allowed: bool = False) -> None:
    """Check that settings that came with data name no code, before anything is imported.

    Args:
        settings: The settings.
        place: The dataset or run that they came with, for the message.
        named: Names that the user gave as well.
        allowed: Whether the user allows code of any name.

    Raises:
        Refused: If they name some.
    """
    if not allowed and (found := sorted(members(settings) - {*named})):
        raise Refused(
            place,
            f"its settings name code outside of dhr-batch, which would be run: {', '.join(found)}",
            "if you trust that code, give --allow-code, or name it yourself with -c or --set",
        )
