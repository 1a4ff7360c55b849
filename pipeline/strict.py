"""The base class of settings and descriptions that are read from YAML."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from dhr_batch.stages.yaml_files import shown

_MOST_REASONS = 4


class Strict(BaseModel):
    """A frozen pydantic model that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def reasons(error: ValidationError) -> str:
    """Return what is wrong with settings, as one line of bounded length."""
    found = []
    for item in error.errors()[:_MOST_REASONS]:
        path = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            found.append(f"unknown setting {shown(path)}")
        else:
            why = f"{item['msg'][:1].lower()}{item['msg'][1:]}"
            got = "" if item["type"] == "missing" else f", got {shown(item['input'])}"
            found.append(f"{path}: {why}{got}")
    more = error.error_count() - len(found)
    return "; ".join(found) + (f"; and {more} more" if more else "")
