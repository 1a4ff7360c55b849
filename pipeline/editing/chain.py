"""Runs the stages of a run on one photograph after the other, in this process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from dhr_batch.pipeline import outside
from dhr_batch.pipeline.cores import cores
from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.editing.choice import Choice
from dhr_batch.pipeline.editing.edited import Edited
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning import devices, prepare
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.pipeline.planning.plan import Plan, models_of
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.worker.batches import ON_CPU
from dhr_batch.pipeline.worker.loading import load
from dhr_batch.pipeline.worker.reading import read_record
from dhr_batch.stages import registry
from dhr_batch.stages.base import Stage
from dhr_batch.stages.context import Told
from dhr_batch.stages.decode import decode
from dhr_batch.stages.device import Kind
from dhr_batch.stages.faces import further
from dhr_batch.stages.failures import ImageError, free_memory
from dhr_batch.stages.options.align import MAX_MEGAPIXELS
from dhr_batch.stages.record import ImageFailure, Record, required

# Settings that say what a run begins with. An edit begins with the photographs that it is given.
_ALWAYS = {"dataset": "photographs", "first_stage": registry.STAGES[0]}


def configured(request: Request, datasets: Iterable[Dataset] = ()) -> Config:
    """Merge and check all settings. All cores of a CPU compute one photograph.

    Args:
        request: The settings of the user.
        datasets: The datasets of the photographs, which may change settings.

    Raises:
        Refused: The settings cannot be used.
    """
    given = prepare.given_by(request)
    for key, value in _ALWAYS.items():
        if given.settings.get(key, value) != value:
            raise Refused(
                f"{key}={given.settings[key]}",
                "an edit runs all stages on the photographs that it is given",
                "leave this setting out, or use `dhr-batch run`",
            )
    own = [dataset.config for dataset in datasets]
    for settings in own:
        outside.check(settings, "a dataset", given.code, request.allow_code)
    preset = configs.chosen_preset(given.settings)
    return prepare.checked([{"threads": cores()}, *preset, *own, *given.layers, _ALWAYS])


def planned(request: Request, config: Config, items: Sequence[Item], aligned: bool) -> Plan:
    """Return the plan of an edit on one device.

    Args:
        request: The settings of the user.
        config: All settings, as `configured` returns them.
        items: The photographs.
        aligned: Whether they are FFHQ crops.

    Raises:
        Refused: The settings cannot be used on this machine.
    """
    dataset = Dataset(name=_ALWAYS["dataset"], aligned=aligned)
    gpus = min(1, devices.number(config, remote=False))
    plan = prepare.planned(config, dataset, items[: config.limit], gpus)
    prepare.check_gpus(plan, request)
    return plan


class Chain:
    """The stages. They are loaded when the first photograph has been decoded.

    Attributes:
        config: The settings.
        told: Called with the name of a stage, the number of its finished steps and the number of
            all its steps; both are 0 when it begins. It may be replaced between photographs.

    Args:
        plan: The plan of `planned`.
        choice: The pictures to make.
        told: See above.
    """

    def __init__(self, plan: Plan, choice: Choice, told: Told = lambda *_: None) -> None:
        self.config, self._plan, self._choice, self.told = plan.config, plan, choice, told

    @property
    def is_loaded(self) -> bool:
        """Whether the stages are loaded."""
        return "_stages" in vars(self)

    @cached_property
    def _stages(self) -> Sequence[Stage]:
        kind = devices.torch_device(self.config)
        return load(
            self.config,
            kind,
            self._plan.dataset.aligned,
            networks=_networks(self._plan, kind),
            progress=lambda *step: self.told(*step),
        ).stages

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
        try:
            photograph, _ = decode(required(record.data), self._megapixels)
        except ImageError as error:
            message = f"{record.image_id}: {error}"
            return ImageFailure(registry.STAGES[0], error.error_class, message)
        align, *others = self._stages
        self.told(align.family, 0, 0)
        records = align.run([record])
        records += align.run(further(record, records[0]))
        failures = [face.failure for face in records if face.failure is not None]
        faces = [face for face in records if face.failure is None]
        # A photograph may show more faces than fit into memory at once.
        at_once = self.config.batch_size or ON_CPU
        for first in range(0, len(faces), at_once):
            part = faces[first : first + at_once]
            for stage in others:
                self.told(stage.family, 0, 0)
                part = stage.run(part)
            faces[first : first + at_once] = part
        failures += [face.failure for face in faces if face.failure is not None]
        faces = [face for face in faces if face.failure is None]
        if not faces:
            return failures[0]
        lost = tuple(failure.message for failure in failures)
        return Edited(record.image_id, photograph, tuple(faces), self._choice, lost)

    @property
    def _megapixels(self) -> float:
        return float(self.config.align.get("max_megapixels", MAX_MEGAPIXELS))


# The networks of the last chain, by the settings that they were loaded with.
_KEPT: dict[str, dict[tuple[str, str], Any]] = {}
# The process that has loaded networks, and has the threads of torch.
_process: int | None = None


def unload() -> None:
    """Free the memory of the networks that `dhr_batch.edit` has loaded. The next call loads them.

    They are used as long as a call in another thread needs them.
    """
    _KEPT.clear()
    # Stages and networks refer to each other, so that they are not freed at once.
    free_memory()


def _networks(plan: Plan, kind: Kind) -> dict[tuple[str, str], Any]:
    """Return the networks of the last chain if this one differs in its edits alone, else none.

    Raises:
        Refused: This process was forked from one that has loaded networks.
    """
    global _process
    if _process not in (None, os.getpid()):
        raise Refused(
            "an edit in a forked process",
            "the process that it was forked from has loaded networks, whose threads are missing "
            "here, so that it would wait for them forever",
            'start processes with multiprocessing.get_context("spawn")',
        )
    _process = os.getpid()
    edit = {name: value for name, value in plan.config.edit.items() if name != "edits"}
    others = plan.config.model_copy(update={"edit": edit}).model_dump_json()
    models = set().union(*models_of(plan).values())
    key = f"{kind} {plan.dataset.aligned} {sorted(models)} {others}"
    if key not in _KEPT:
        unload()
    return _KEPT.setdefault(key, {})
