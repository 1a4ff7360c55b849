"""The base class of settings and descriptions that are read from YAML, and their errors."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Tag, ValidationError

from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages.registry import InvalidInput
from dhr_batch.stages.yaml_files import shown

# What is wrong is listed up to these numbers: in a message of its own, and as a part of a line.
_MOST, _MOST_REASONS = 20, 4
_VALID = "give a valid value, or leave the setting out to use its default"


class Strict(BaseModel):
    """A frozen pydantic model that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def refused(
    error: ValidationError, model: type[BaseModel], where: str = "", prefix: str = ""
) -> Refused:
    """Return the error of a command that lists what is wrong with settings.

    Args:
        error: What pydantic found.
        model: The class of the settings.
        where: Where they stand, such as a file.
        prefix: What comes before the keys, such as `embed.`.
    """
    found = _problems(error, model, prefix, _MOST)
    if len(found) > 1:
        return Refused(where or "settings", "".join(f"\n  {one}" for one in found))
    (one,) = found
    return Refused(f"{where}: {one.what}" if where else one.what, one.why, one.way_out)


def reasons(error: ValidationError, model: type[BaseModel]) -> str:
    """Return what is wrong with settings as one line of bounded length."""
    found = _problems(error, model, "", _MOST_REASONS)
    return "; ".join(one.reason if one.way_out == _VALID else str(one) for one in found)


def _problems(
    error: ValidationError, model: type[BaseModel], prefix: str, most: int
) -> list[Refused]:
    # A value that fits no type of a union has an error for each of them.
    places: dict[tuple[str | int, ...], Any] = {}
    for item in error.errors():
        if (first := places.setdefault(_place(item["loc"], model), item)) is not item:
            first["msg"] = (
                f"{_message(first)}, or {_message(item).removeprefix('Input should be ')}"
            )
    found = [_problem(item, place, model, prefix) for place, item in [*places.items()][:most]]
    more = len(places) - len(found)
    return [*found, Refused(f"and {more} more")] if more else found


def _place(location: Sequence[str | int], model: type[BaseModel]) -> tuple[str | int, ...]:
    """Return the keys and indices to a value, without the members of unions on the way."""
    found, kind = [], model
    for part in location:
        while get_origin(kind) is Annotated or (len(_members(kind)) == 1):
            kind = get_args(kind)[0] if get_origin(kind) is Annotated else _members(kind)[0]
        if not _members(kind):
            found.append(part)
        kind = _type_of(part, kind)
    return tuple(found)


def _members(kind: Any) -> list[Any]:
    """Return the types of a union, without None."""
    if get_origin(kind) not in (Union, UnionType):
        return []
    return [one for one in get_args(kind) if one is not NoneType]


def _message(item: Any) -> str:
    # "Input should be a valid integer, unable to parse string as an integer" says it twice.
    return str(item["msg"]).partition(", unable to parse")[0]


def _problem(item: Any, place: Sequence[str | int], model: type[BaseModel], prefix: str) -> Refused:
    path = (prefix + ".".join(str(part) for part in place)).rstrip(".")
    if item["type"] == "extra_forbidden":
        options: Any = model
        for part in item["loc"][:-1]:
            options = _type_of(part, options)
        valid = list(getattr(options, "model_fields", {}))
        head, _, rest = str(item["loc"][-1]).partition(".")
        if rest and head in valid:
            return Refused(f"unknown setting {path}", way_out=f"write {head}: {{{rest}: VALUE}}")
        close = difflib.get_close_matches(str(item["loc"][-1]), valid, 1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"valid keys: {', '.join(valid)}"
        return Refused(f"unknown setting {path}", way_out=hint)
    message = _message(item)
    why = f"{message[:1].lower()}{message[1:]}"
    if item["type"] == "missing":
        return Refused(path, why, "give it a value")
    # A check of our own, whose error says what is wrong with the value.
    if isinstance(own := item.get("ctx", {}).get("error"), InvalidInput):
        return Refused(path, own.reason, own.way_out)
    if item["type"] == "value_error":
        why = item["msg"].removeprefix("Value error, ")
        return Refused(path, why, _VALID) if path else Refused(why)
    return Refused(path, f"{why}, got {shown(item['input'])}", _VALID)


def _type_of(part: str | int, whole: Any) -> Any:
    """Return the type of a field, of an item, or of the member of a union with a tag."""
    if field := getattr(whole, "model_fields", {}).get(part):
        return field.annotation
    if get_origin(whole) is Annotated:
        return _type_of(part, get_args(whole)[0])
    kinds = get_args(whole)
    return next((k for k in kinds if isinstance(part, int) or Tag(str(part)) in get_args(k)), None)
