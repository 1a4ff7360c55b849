"""The models that a command needs: whether they are there, and what can be downloaded of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dhr_batch.pipeline.models import catalogue, downloads
from dhr_batch.pipeline.models.catalogue import ModelMissing, ModelStatus


def require(names: Iterable[str]) -> None:
    """Check that models are there.

    Raises:
        ModelMissing: If some are missing or damaged. It names all of them and how to get them.
        Refused: If no model has one of the names.
    """
    missing: dict[str, ModelMissing] = {}
    for name in sorted(set(names)):
        try:
            catalogue.path(name)
        except ModelMissing as error:
            missing[name] = error
    if len(missing) == 1:
        raise missing.popitem()[1]
    if not missing:
        return
    if todo := to_download(missing):
        command = f"dhr-batch models pull {' '.join(missing)}"
        way_out = f"get them ({download_size(todo)}) with: {command}"
    else:
        command = "\n  ".join(error.command for error in missing.values())
        way_out = f"get them with:\n  {command}"
    what = f"{len(missing)} models are missing"
    raise ModelMissing(what, ", ".join(missing), way_out, command, [*missing])


def to_download(names: Iterable[str]) -> list[ModelStatus]:
    """Return what to download to have these models; nothing if one cannot be downloaded."""
    status = {found.name: found for found in catalogue.model_statuses()}
    todo = [status[model.name] for model in downloads.with_required([*names])]
    todo = [found for found in todo if found.state != "ready"]
    return todo if all(found.download for found in todo) else []


def download_size(todo: Sequence[ModelStatus]) -> str:
    """Return how much is downloaded. Models of one archive share its download."""
    return f"{sum({found.source: found.download for found in todo}.values()) / 1e6:.0f} MB"
