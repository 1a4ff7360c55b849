"""The base class of the records that a run folder stores as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self


class JsonRecord:
    """A dataclass that can be read from a JSON object and written as one.

    A field that is missing in the object gets its default, as older versions wrote fewer fields. A
    field whose value is None is not written.
    """

    __slots__ = ()

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Read a record.

        Raises:
            ValueError: If the value is not a JSON object.
        """
        if not isinstance(found, Mapping):
            raise ValueError(f"{found!r} is not a JSON object")
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: found[name] for name in names if name in found})

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in content.items() if value is not None}
