"""A finished run that a new one begins from: its images, and the settings they are bound to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from dhr_batch.pipeline.datasets import listing, named
from dhr_batch.pipeline.datasets.items import DatasetError, Item
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.models.weights import check_weights
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning import earlier_run
from dhr_batch.pipeline.planning.config import RUN_ONLY, Config, Layer, differences, flat
from dhr_batch.pipeline.runs import quarantine
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import part
from dhr_batch.pipeline.runs.stored_plan import RunSettings, StoredPlan
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import RUN, Owned
from dhr_batch.stages import registry


def start(asked: Mapping[str, Any]) -> tuple[Dataset, Origin | None, list[Layer]]:
    """The dataset of a run, the run it begins from if it does, and the settings below those given.

    asked: merged settings as the user gave them; `dataset`, `preset` and `first_stage` are read.
    Raises Refused and StorageError.
    """
    dataset = named.find(asked["dataset"])
    preset = [configs.preset(asked["preset"])] if asked.get("preset") else []
    if RunSettings(asked).begins_late:
        origin = Origin(dataset.location)
        return origin.dataset(dataset), origin, [origin.settings, *preset]
    if not listing.is_archive(dataset.location) and locations.exists(
        locations.join(dataset.location, "plan.json")
    ):
        raise Refused(
            dataset.location,
            "it is a run",
            f"name the stage to begin at with --from (one of: {', '.join(registry.STAGES[1:])}), "
            "or give the photographs it was made of",
        )
    return dataset, None, [*preset, dataset.config]


def first_plan(plan: StoredPlan) -> StoredPlan:
    """The plan of the run that read the photographs, which a run of this plan goes back to.

    Raises Refused where a run in between is gone or another one, DatasetError and StorageError.
    """
    while plan.settings.begins_late:
        place = plan.settings.dataset
        earlier = RunFolder(named.find(place).location).plan()
        # Equal to a part of itself is no fingerprint, so this ends.
        if earlier is None or earlier.fingerprint != plan.fingerprint.origin:
            raise Refused(place, "it is not the run any more that this one began from")
        plan = earlier
    return plan


def inputs(run: Storage, plan: StoredPlan) -> Iterator[str]:
    """Where the dataset of a run lies, and those of the runs that it began from, as far as known.

    A run has noted it; of one that has not, the plan may name it, if not by a relative path.
    """
    seen: set[str] = set()
    while True:
        dataset = plan.settings.dataset
        known = Owned(run, RUN).about.get("dataset")
        try:
            if not known and (os.path.isabs(dataset) or locations.is_url(dataset)):
                known = named.find(dataset).location
            if not known or known in seen:
                return
            yield known
            seen.add(known)
            if not plan.settings.begins_late:
                return
            run = connect(known)
            plan = RunFolder(run).plan() or StoredPlan()
        except (DatasetError, Refused, StorageError):
            return


def _completed(family: str, section: dict[str, Any]) -> dict[str, Any]:
    """A stage's stored settings with the options that it has got since the run was made.

    They were as if at their own defaults then, which those of today's presets may not be. Settings
    that the stage does not take any more stay, to be refused by name later.
    """
    try:
        return configs.options_class(family, section["name"])(**section).model_dump(mode="json")
    except ValidationError:
        return section


class Origin:
    """A run that holds what the stages before the first one of a new run have left.

    settings: those of its rows, which the new run has unless told otherwise. fingerprint: as
    planned. left_out: its images in quarantine, once `items` was called. Raises Refused where
    there is no run, or one that is not finished, and StorageError.
    """

    def __init__(self, place: str) -> None:
        self.folder = RunFolder(place)
        self.storage = self.folder.storage
        self.plan = plan = self.folder.started_plan()
        self.fingerprint = plan.fingerprint
        dropped = RUN_ONLY | {"first_stage"}
        self.settings = {
            key: _completed(key, value) if key in registry.STAGES else value
            for key, value in plan.settings.values.items()
            if key not in dropped
        }
        self.left_out = 0

    def dataset(self, found: Dataset) -> Dataset:
        """What is known of the images."""
        about = {"aligned": self.fingerprint.aligned, "split": self.fingerprint.split}
        return found.model_copy(update=about | {"config": {}})

    def items(self, config: Config) -> list[Item]:
        """Its images in plan order, without those in quarantine; `stored.Reader` reads them.

        config: of the new run. An item's `at` is its shard here; its mark changes with the tables
        of that shard. Raises Refused.
        """
        tables = earlier_run.tables_for(config)
        sizes, marks = self.storage.sizes(), {}
        for shard, manifest in self.folder.each_manifest():
            for table in tables:
                key, facts = part(table, shard), manifest.files.get(table)
                if sizes.get(key) != (facts and facts.bytes):
                    raise Refused(
                        self.storage.locate(key),
                        "it is not as its manifest says",
                        f"see what to do with: dhr-batch verify {self.storage.place}",
                    )
            files = [manifest.files[table] for table in tables]
            sums = hashlib.sha256("".join(file.sha256 for file in files).encode())
            marks[shard] = sum(file.bytes for file in files), sums.hexdigest()[:16]
        planned = self.plan.shards
        if missing := len(planned) - len(marks):
            raise Refused(
                self.storage.place,
                f"it is not finished: {missing} of {len(planned)} shards are to do",
                "finish it with its own command, then begin from it",
            )
        failed = {row.image_id for row in quarantine.quarantined(self.storage)}
        self.left_out = len(failed)
        if not (found := list(self._items(marks, failed))):
            raise Refused(self.storage.place, "it has no images: all are in quarantine")
        return found

    def _items(self, marks: Mapping[int, tuple[int, str]], failed: set[str]) -> Iterator[Item]:
        place = self.storage.address
        for shard, ids in enumerate(self.plan.shards):
            size, etag = marks[shard]
            for image_id in ids:
                if image_id not in failed:
                    yield Item(image_id, place, "", size, shard, etag)

    def check(self, config: Config) -> None:
        """Raises Refused for resolved settings of a new run that do not fit what was stored."""
        place = self.storage.place
        check_weights(self.plan.settings.generator, self.fingerprint.models, place)
        self._check_same(config)
        there = self.settings.get("store_deltas")
        if "refine" in config.stages:
            return
        if config.store_deltas not in ("none", there):
            raise Refused(
                f"store_deltas={config.store_deltas}",
                f"{place} was made with {there}, and what it has not cannot be stored",
                "leave it, or say store_deltas=none",
            )
        if "edit" in config.stages and there == "none" and config.refine["name"] != "none":
            raise Refused(
                place,
                "it was made with store_deltas=none, so it has no refined weights to edit with",
                "begin at refine with --set store_deltas=small, or make it again with that",
            )

    def _check_same(self, config: Config) -> None:
        """Settings of the stages that have run are facts."""
        earlier = [stage for stage in registry.STAGES if stage not in config.stages]
        fixed = ("generator", "seed", *earlier)
        made = configs.build([self.settings, {"dataset": config.dataset}])
        then = configs.resolve(made, 0, 1).model_dump(include=set(fixed))
        now = config.model_dump(include=set(fixed))
        changed = [line for _, line in differences(flat(then), flat(now))]
        if changed:
            listed = "\n  ".join(changed)
            raise Refused(
                f"a run that begins at {config.first_stage}",
                f"it takes the rest as {self.storage.place} has it, which was made with other "
                f"settings:\n  {listed}",
                "leave these out, or make a whole run with them",
            )
