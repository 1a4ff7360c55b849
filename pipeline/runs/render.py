"""Pictures of a run again, and edits that it did not make, from its tables alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.models.weights import check_weights
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.tables.rows import is_own
from dhr_batch.stages.base import Context
from dhr_batch.stages.direction_files import DirectionError

if TYPE_CHECKING:
    from dhr_batch.stages.rerender import Rerender

EditChoice = tuple[str, float]


def context(plan: Mapping[str, Any], place: str) -> Context:
    """The generator that a run was made with, on a GPU if there is one; other networks not at all.

    Raises Refused where its weights are others now, and ModelMissing where they are not here.
    """
    import torch

    check_weights(plan, place)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Context(device, plan["config"]["generator"], catalogue.path)


def renderer(networks: Context, edits: Iterable[EditChoice]) -> Rerender:
    """What makes the pictures of a run's records. Raises Refused for unknown directions."""
    from dhr_batch.stages.rerender import Rerender

    try:
        return Rerender(networks, edits)
    except DirectionError as error:
        raise Refused(str(error)) from error


def _write(folder: Storage, name: str, content: bytes) -> bool:
    """False where a file of this name is there that `write` did not write."""
    there = folder.get(name)
    if there is not None and not is_own(there.content):
        return False
    return folder.swap(name, content, there.version if there else None) is not None
