"""Pictures of a run again, and edits that it did not make, from its tables alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.models.weights import check_weights
from dhr_batch.pipeline.runs.stored_plan import StoredPlan
from dhr_batch.pipeline.runs.versions import RuleVersions
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.tables.rows import is_own
from dhr_batch.stages.base import Context
from dhr_batch.stages.direction_files import DirectionError

if TYPE_CHECKING:
    from dhr_batch.stages.rerender import Rerender

EditChoice = tuple[str, float]


def context(plan: StoredPlan, place: str) -> Context:
    """The generator that a run was made with, on a GPU if there is one; other networks not at all.

    Raises Refused where its weights are others now, and ModelMissing where they are not here.
    """
    import torch

    generator = plan.settings.generator
    check_weights(generator, plan.fingerprint.models, place)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Context(device, generator, catalogue.path)


def renderer(networks: Context, edits: Iterable[EditChoice], rules: RuleVersions) -> Rerender:
    """What makes the pictures of a run's records, by the rules that the run was made by.

    Raises Refused for unknown directions.
    """
    from dhr_batch.stages.rerender import Rerender

    by_edit_rule = {1: Rerender}
    try:
        return by_edit_rule[rules.edit](networks, edits)
    except DirectionError as error:
        raise Refused(str(error)) from error


def _write(folder: Storage, name: str, content: bytes) -> bool:
    """False where a file of this name is there that `write` did not write."""
    there = folder.get(name)
    if there is not None and not is_own(there.content):
        return False
    return folder.swap(name, content, there.version if there else None) is not None
