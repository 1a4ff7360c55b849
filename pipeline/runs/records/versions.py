"""Versions of the format of a run folder, and of the rules by which pictures are rendered again.

`plan.json` records the versions that a run was made with. A change that an older program would
misread, or that would give other pictures for the same rows, gets a new number here. Readers then
choose the code by the number in `plan.json` (`render.renderer` does so for the rules). A run whose
`plan.json` lacks these keys has version 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.runs.records.json_record import JsonRecord
from dhr_batch.version import __version__

# All known versions with a description of each. New runs get the highest number.
SCHEMA = {
    1: "dhr-batch 0.1.0 up to commit be036bd: plan.json names no versions",
    2: "plan.json names the versions of its schema and rules",
}
RULES = {
    "edit": {
        1: "each edit moves the code or the styles, and the refiner renders the result",
        2: "the settings edit.rows and edit.follow say what an edit moves and what follows it",
    },
    "picture": {1: "PNG, 8 bits per channel"},
    "codec": {1: "each tensor names its scheme: dithered, predicted, exact or int8_channel"},
}


@dataclass(frozen=True)
class RuleVersions(JsonRecord):
    """Versions of the rules that rendering depends on.

    Attributes:
        edit: The version of the rule by which edits are applied.
        picture: The version of the format of pictures.
        codec: The version of the codec of deltas.
    """

    edit: int = 1
    picture: int = 1
    codec: int = 1


def newest_schema() -> int:
    """Return the version of the schema of new runs."""
    return max(SCHEMA)


def newest_rules() -> RuleVersions:
    """Return the versions of the rules of new runs."""
    return RuleVersions(**{name: max(known) for name, known in RULES.items()})


def check(plan: Mapping[str, Any], place: str) -> None:
    """Check that this version of dhr-batch can read a stored plan.

    Args:
        plan: The content of `plan.json`, of any version.
        place: The run, for messages.

    Raises:
        Refused: If the run was made by a newer version of dhr-batch.
        ValueError: If a version is not a positive integer.
    """
    rules, fingerprint = plan.get("rules", {}), plan.get("fingerprint", {})
    if not isinstance(rules, Mapping) or not isinstance(fingerprint, Mapping):
        raise ValueError("rules or fingerprint is not a JSON object")
    stored = {"schema_version": (plan.get("schema_version", 1), SCHEMA)} | {
        f"rules.{name}": (rules.get(name, 1), known) for name, known in RULES.items()
    }
    for key, (version, known) in stored.items():
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"{key} is {version!r}, not a positive integer")
        if version not in known:
            made_by = fingerprint.get("version", "")
            raise Refused(
                place,
                f"it was made by dhr-batch {made_by}, its {key} is {version}, and this "
                f"dhr-batch ({__version__}) knows versions up to {max(known)}",
                "use the dhr-batch that made it, or a newer one",
            )
