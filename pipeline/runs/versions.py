"""Versions of what a run folder holds, and of the rules by which its pictures are made again.

`plan.json` names those that its run was made by. A change that an older program would misread, or
that gives other pictures from the same rows, gets a new number here; the reader then chooses by
the number of the run (`render.renderer` for the rules). A run without these keys is of version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.runs.records import JsonRecord
from dhr_batch.version import __version__

# All known versions with what is special about each. The highest number is that of new runs.
SCHEMA = {
    1: "dhr-batch 0.1.0 up to commit be036bd: plan.json names no versions",
    2: "plan.json names the versions of its schema and rules",
}
RULES = {
    "edit": {1: "code + strength * direction, with the weights, feature and mask of the image"},
    "picture": {1: "PNG, 8 bits per channel"},
    "codec": {1: "each tensor names its scheme: dithered, predicted or int8_channel"},
}


@dataclass(frozen=True)
class RuleVersions(JsonRecord):
    """What re-rendering depends on: versions of the edit rule, picture format and delta codec."""

    edit: int = 1
    picture: int = 1
    codec: int = 1


def newest_schema() -> int:
    """The version of the schema of new runs."""
    return max(SCHEMA)


def newest_rules() -> RuleVersions:
    """The versions of the rules of new runs."""
    return RuleVersions(**{name: max(known) for name, known in RULES.items()})


def check(plan: Mapping[str, Any], place: str) -> None:
    """Raise Refused for a stored plan of a version that this program does not know.

    Args:
        plan: content of `plan.json`, of any version.
        place: the run, for the message.

    Raises:
        Refused: the run was made by a newer program.
        ValueError: a version is not a number.
    """
    rules, fingerprint = plan.get("rules", {}), plan.get("fingerprint", {})
    if not isinstance(rules, Mapping) or not isinstance(fingerprint, Mapping):
        raise ValueError("rules or fingerprint is not a JSON object")
    stored = {"schema_version": (plan.get("schema_version", 1), SCHEMA)} | {
        f"rules.{name}": (rules.get(name, 1), known) for name, known in RULES.items()
    }
    for key, (version, known) in stored.items():
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"{key} is {version!r}, not a number from 1")
        if version not in known:
            made_by = fingerprint.get("version", "")
            raise Refused(
                place,
                f"it was made by dhr-batch {made_by}, its {key} is {version}, and this "
                f"dhr-batch ({__version__}) knows versions up to {max(known)}",
                "use the dhr-batch that made it, or a newer one",
            )
