"""The base class of the records that a run folder stores as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError


class JsonRecord:
    """A dataclass that can be read from a JSON object and written as one.

    A field that is missing in the object gets its default, as older versions wrote fewer fields. A
    field whose value is None is not written.
    """

    __slots__ = ()
    __pydantic_config__: ClassVar = ConfigDict(coerce_numbers_to_str=True)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Read a record.

        Raises:
            ValueError: If the value is not a JSON object, or a field has the wrong type.
        """
        if not isinstance(found, Mapping):
            raise ValueError(f"{found!r} is not a JSON object")
        given = {name: value for name, value in found.items() if value is not None}
        record: Self = checked(cls, given)
        return record

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in content.items() if value is not None}


def checked(kind: Any, value: Any) -> Any:
    """Return a value of JSON as a dataclass or model. Unknown keys are ignored.

    Raises:
        ValueError: If it, or a part of it, has the wrong type. The message names the part.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'].replace('Input', 'it')}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
