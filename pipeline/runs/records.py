"""The base of the records that a run folder holds as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self


class JsonRecord:
    """A dataclass that is read from a JSON object and written as one.

    Fields that an object lacks have their defaults: older versions wrote fewer. Those whose value
    is None are not written.
    """

    __slots__ = ()

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The record of a JSON object. Raises ValueError for any other value."""
        if not isinstance(found, Mapping):
            raise ValueError(f"{found!r} is not a JSON object")
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: found[name] for name in names if name in found})

    def to_json(self) -> dict[str, Any]:
        """The JSON object of this record."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in content.items() if value is not None}
