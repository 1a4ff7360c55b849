"""Runs the stages of a run on one photograph after the other, in this process."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import partial
from typing import Any

from dhr_batch.pipeline import outside
from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.editing.choice import Choice
from dhr_batch.pipeline.editing.edited import Edited
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning import devices
from dhr_batch.pipeline.planning.plan import Plan, check_edits, edits_of, make, models_of
from dhr_batch.pipeline.planning.prepare import check_gpus, given_layers
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.tables.rows import as_stored
from dhr_batch.pipeline.worker.batches import ON_CPU
from dhr_batch.pipeline.worker.loading import load
from dhr_batch.pipeline.worker.worker import read_record, run_info
from dhr_batch.stages.base import ImageFailure, Record, Told, required
from dhr_batch.stages.decode import decode
from dhr_batch.stages.device import Kind
from dhr_batch.stages.faces import further
from dhr_batch.stages.options.align import MAX_MEGAPIXELS


def planned(
    request: Request,
    items: Sequence[Item] = (),
    aligned: bool = False,
    settings: Sequence[dict[str, Any]] = (),
) -> Plan:
    """Merge the settings, as for a run. All cores of a CPU compute one photograph.

    Args:
        request: The settings of the user.
        items: The photographs.
        aligned: Whether they are FFHQ crops.
        settings: Settings of the datasets of the photographs.

    Raises:
        Refused: The settings cannot be used.
    """
    chosen = given_layers(request)
    given = configs.merge(chosen)
    named_code = {*request.named, *outside.members(given)}
    for own in settings:
        outside.check(own, "a dataset", named_code, request.allow_code)
    preset = configs.chosen_preset(given)
    always = {"dataset": "photographs", "first_stage": "align"}
    config = configs.build([{"threads": devices.cores()}, *preset, *settings, *chosen, always])
    check_edits(edits_of(config))
    gpus = min(1, devices.number(config, remote=False))
    resolved = configs.resolve(config, gpus, len(items))
    dataset = Dataset(name="photographs", aligned=aligned)
    plan = make(resolved, dataset, items[: config.limit])
    check_gpus(plan, request)
    return plan


class Chain:
    """The loaded stages.

    Attributes:
        config: The settings.
        device: The name of the device.

    Args:
        plan: The plan of `planned`.
        choice: The pictures to make.
        told: Called with the name of a stage, and how many of its steps are done of how many;
            0 of 0 when it begins.
    """

    def __init__(self, plan: Plan, choice: Choice, told: Told = lambda *_: None) -> None:
        self.config, self._choice, self._told = plan.config, choice, told
        kind, aligned = devices.torch_device(plan.config), plan.dataset.aligned
        context, self.stages, self.device = load(
            plan.config, kind, aligned, networks=_networks(plan, kind), progress=told
        )
        generator = context.network("generator", plan.config.generator)
        context.stored = partial(as_stored, info=run_info(plan.config, generator, {}))

    def edit(self, item: Item) -> Edited | ImageFailure:
        """Read and edit a photograph.

        Raises:
            StorageError: The storage of the photograph is unavailable.
        """
        return self.edit_record(read_record(item, "", max_megapixels=self._megapixels))

    def edit_record(self, record: Record) -> Edited | ImageFailure:
        """Edit a photograph.

        Args:
            record: The name and the content of its file, or a failure to read it.

        Returns:
            The result, or why there is none.
        """
        if record.failure is not None:
            return record.failure
        align, *others = self.stages
        self._told(align.family, 0, 0)
        records = align.run([record])
        records += align.run(further(record, records[0]))
        failures = [face.failure for face in records if face.failure is not None]
        faces = [face for face in records if face.failure is None]
        # A photograph may show more faces than fit into memory at once.
        at_once = self.config.batch_size or ON_CPU
        for first in range(0, len(faces), at_once):
            part = faces[first : first + at_once]
            for stage in others:
                self._told(stage.family, 0, 0)
                part = stage.run(part)
            faces[first : first + at_once] = part
        failures += [face.failure for face in faces if face.failure is not None]
        faces = [face for face in faces if face.failure is None]
        if not faces:
            return failures[0]
        photograph, _ = decode(required(record.data), self._megapixels)
        lost = tuple(failure.message for failure in failures)
        return Edited(record.image_id, photograph, tuple(faces), self._choice, lost)

    @property
    def _megapixels(self) -> float:
        return float(self.config.align.get("max_megapixels", MAX_MEGAPIXELS))


# The networks of the last chain, by the settings that they were loaded with.
_KEPT: dict[str, dict[tuple[str, str], Any]] = {}


def _networks(plan: Plan, kind: Kind) -> dict[tuple[str, str], Any]:
    """Return the networks of the last chain if this one differs in its edits alone, else none."""
    edit = {name: value for name, value in plan.config.edit.items() if name != "edits"}
    others = plan.config.model_copy(update={"edit": edit}).model_dump_json()
    models = set().union(*models_of(plan).values())
    key = f"{kind} {plan.dataset.aligned} {sorted(models)} {others}"
    if key not in _KEPT:
        _KEPT.clear()
        # Stages and networks refer to each other, so that they are not freed at once.
        gc.collect()
    return _KEPT.setdefault(key, {})
