"""Render pictures of a run again, and new edits of them, from its tables alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dhr_batch.pipeline import outside
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.models.weights import check_weights
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.runs.records.versions import RuleVersions
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.tables.rows import is_own
from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.device import Kind, use
from dhr_batch.stages.registry import InvalidInput

if TYPE_CHECKING:
    from dhr_batch.stages.edit.rerender import EditChoice, Rerender


def context(
    plan: StoredPlan, place: str, kind: Kind | None = None, allow_code: bool = False
) -> Context:
    """Return the networks that render the pictures of a run.

    These are the generator, and those of the refiner if it has any. They are loaded when they are
    first used.

    Args:
        plan: The stored plan of the run.
        place: The run, for messages.
        kind: The device; None for an NVIDIA GPU if there is one, else the CPU.
        allow_code: Whether the run may name code outside of dhr-batch.

    Raises:
        InvalidInput: If there is no such device.
        Refused: If the weights have changed since the run, or it names code.
        UnknownName: If the refiner of the run is not installed.
    """
    generator = plan.settings.generator
    outside.check(plan.settings.values, place, allowed=allow_code)
    device = use(plan.settings.precision, kind)
    found = Context(
        device,
        generator,
        catalogue.path,
        refine=plan.settings.section("refine"),
        edit=_with_earlier(plan.settings.section("edit")),
    )
    check_weights(generator, plan.fingerprint.models, place, found.new_refiner().render_models())
    return found


def _with_earlier(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings of the edits with those that the run did not have yet."""
    if not section:
        return {}
    return {**registry.lookup("edit", section["name"]).Options.earlier, **section}


def renderer(networks: Context, edits: Iterable[EditChoice], rules: RuleVersions) -> Rerender:
    """Return a callable that renders the pictures of a record.

    Args:
        networks: The generator (see `context`).
        edits: The edits, see `Rerender`.
        rules: The versions of the rules that the run was made with.

    Raises:
        Refused: If a direction is unknown, or the text of an edit has another form.
    """
    from dhr_batch.stages.edit.rerender import Rerender

    # Both rules are one class, as the settings of a run say which it has (`_with_earlier`).
    renderers = {1: Rerender, 2: Rerender}
    try:
        return renderers[rules.edit](networks, edits)
    except InvalidInput as error:
        raise Refused(error.reason, way_out=error.way_out) from error


def write_picture(folder: Storage, name: str, content: bytes) -> bool:
    """Write a picture. Returns False if a file of this name exists that dhr-batch did not write."""
    found = folder.get(name)
    if found is not None and not is_own(found.content):
        return False
    return folder.swap(name, content, found.version if found else None) is not None
