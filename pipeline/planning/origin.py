"""A finished run from which a new run begins: its images and settings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dhr_batch.pipeline import outside
from dhr_batch.pipeline.datasets import listing, named
from dhr_batch.pipeline.datasets.items import DatasetError, Item
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.models.weights import check_weights
from dhr_batch.pipeline.planning import config as configs
from dhr_batch.pipeline.planning import earlier_run
from dhr_batch.pipeline.planning.config import RUN_ONLY, Config
from dhr_batch.pipeline.planning.layers import Layer, differences, flat
from dhr_batch.pipeline.planning.plan import render_models
from dhr_batch.pipeline.runs import quarantine
from dhr_batch.pipeline.runs.names import part
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.runs.records.stored_plan import RunSettings, StoredPlan
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import RUN, Owned
from dhr_batch.stages import registry


def start(
    given: Mapping[str, Any], named_code: Collection[str] = (), allow_code: bool = False
) -> tuple[Dataset, Origin | None, list[Layer]]:
    """Find the dataset of a new run, and the run from which it begins.

    Args:
        given: The merged settings of the user, with `dataset`, and perhaps `preset` and
            `first_stage`.
        named_code: Names of code outside of dhr-batch that the user gave.
        allow_code: Whether the dataset or run may name further code.

    Returns:
        The dataset, the earlier run (None if the new run begins with photographs), and the layers
        of settings that those of the user override.

    Raises:
        Refused: If the dataset or the earlier run cannot be used or names code, or the preset is
            unknown.
        StorageError: If the storage does not answer.
    """
    late = RunSettings(given).begins_late
    dataset = _find_run(given["dataset"]) if late else named.find(given["dataset"])
    preset = configs.chosen_preset(given)
    if late:
        origin = Origin(dataset.location, named_code, allow_code)
        return origin.dataset(dataset), origin, [origin.settings, *preset]
    if not listing.is_archive(dataset.location) and locations.exists(
        locations.join(dataset.location, "plan.json")
    ):
        raise Refused(
            dataset.location,
            "it is a run",
            f"name the stage to begin at with --from (one of: {', '.join(registry.STAGES[1:])}), "
            "or give the photographs that it was made from",
        )
    outside.check(dataset.config, f"dataset {given['dataset']}", named_code, allow_code)
    return dataset, None, [*preset, dataset.config]


def _find_run(place: str) -> Dataset:
    """Return a run as a dataset. If it does not exist, the error is that of other commands."""
    try:
        return named.find(place)
    except DatasetError:
        if Path(place).suffix not in {".yaml", ".yml"}:
            RunRecords(place).started_plan()
        raise


def first_plan(plan: StoredPlan) -> StoredPlan:
    """Return the plan of the run that read the photographs.

    If a run began from another run, that one may have begun from a third, and so on. The last of
    these read the photographs.

    Args:
        plan: The plan of any run.

    Raises:
        Refused: If one of these runs is missing, or has been replaced by another run.
        StorageError: If the storage does not answer.
    """
    while plan.settings.begins_late:
        place = plan.settings.dataset
        earlier = RunRecords(named.find(place).location).plan()
        # The loop ends: each fingerprint is a part of the one before it, so none can occur twice.
        if earlier is None or earlier.fingerprint != plan.fingerprint.origin:
            raise Refused(
                place,
                "the earlier run is no longer in this place, or another run has replaced it",
                "put it back",
            )
        plan = earlier
    return plan


def inputs(run: Storage, plan: StoredPlan) -> Iterator[str]:
    """Yield the location of the dataset of a run, and those of the runs that it began from.

    The marker of a run contains this location. Older versions did not write it; then the plan gives
    the location, unless it is a relative path. The search ends at a run whose dataset is unknown.
    """
    seen: set[str] = set()
    while True:
        dataset = plan.settings.dataset
        location = Owned(run, RUN).about.get("dataset")
        try:
            if not location and (os.path.isabs(dataset) or locations.is_url(dataset)):
                location = named.find(dataset).location
            if not location or location in seen:
                return
            yield location
            seen.add(location)
            if not plan.settings.begins_late:
                return
            run = connect(location)
            plan = RunRecords(run).plan() or StoredPlan()
        except (DatasetError, Refused, StorageError):
            return


def _completed(family: str, section: dict[str, Any]) -> dict[str, Any]:
    """Add the options that a stage did not have yet when a run was made to its stored settings.

    They get the value of `StageOptions.earlier` or the default of the stage, which describe what
    the run did; presets may set other values. Stored settings that the stage no longer has are
    kept, and are refused by name later.
    """
    options = configs.options_class(family, section["name"])
    try:
        return options(**{**options.earlier, **section}).model_dump(mode="json")
    except ValidationError:
        return section


class Origin:
    """A run with the results of the stages before the first stage of a new run.

    Args:
        place: The folder of the run, or its URL in an object store.
        named_code: As in `start`, and so is `allow_code`.

    Attributes:
        folder: The run.
        storage: The place of the run.
        plan: Its stored plan.
        fingerprint: Its fingerprint.
        settings: Its settings that rows depend on. They are the defaults of the new run.
        left_out: The number of its images in quarantine, known after a call of `items`.

    Raises:
        NoRun: If the place is not a run.
        StorageError: If the storage does not answer.
    """

    def __init__(
        self, place: str, named_code: Collection[str] = (), allow_code: bool = False
    ) -> None:
        self.folder = RunRecords(place)
        self.storage = self.folder.storage
        self.plan = plan = self.folder.started_plan()
        self.fingerprint = plan.fingerprint
        outside.check(plan.settings.values, self.storage.place, named_code, allow_code)
        dropped = RUN_ONLY | {"first_stage"}
        self.settings = {
            key: _completed(key, value) if key in registry.STAGES else value
            for key, value in plan.settings.values.items()
            if key not in dropped
        }
        self.left_out = 0

    def dataset(self, found: Dataset) -> Dataset:
        """Return a dataset with the facts about the images that the run has stored."""
        about = {"aligned": self.fingerprint.aligned, "split": self.fingerprint.split}
        return found.model_copy(update=about | {"config": {}})

    def items(self, config: Config) -> list[Item]:
        """Return the images in the order of the plan, without those in quarantine.

        Each face with rows is an image of the new run. `earlier_run.Reader` reads these items.
        Their `at` is the number of the shard, and their mark changes with the tables of the shard.

        Args:
            config: The settings of the new run.

        Raises:
            Refused: If the run is not finished, is damaged, or has no images.
        """
        tables = earlier_run.tables_for(config)
        sizes, marks, faces = self.storage.sizes(), {}, {}
        for shard, manifest in self.folder.each_manifest():
            for table in tables:
                key, facts = part(table, shard), manifest.files.get(table)
                if sizes.get(key) != (facts and facts.bytes):
                    raise Refused(
                        self.storage.locate(key),
                        "its size is not the one in its manifest",
                        f"find out what to do with: dhr-batch verify {self.storage.place}",
                    )
            files = [manifest.files[table] for table in tables]
            sums = hashlib.sha256("".join(file.sha256 for file in files).encode())
            marks[shard] = sum(file.bytes for file in files), sums.hexdigest()[:16]
            if manifest.faces:
                faces[shard] = Manifest(faces=manifest.faces)
        planned = self.plan.shards
        if missing := len(planned) - len(marks):
            raise Refused(
                self.storage.place,
                f"it is not finished: {missing} of {len(planned)} shards are to do",
                "finish it with its own command, then begin from it",
            )
        failed = {row.image_id for row in quarantine.quarantined(self.storage)}
        self.left_out = len(failed)
        if not (found := list(self._items(marks, faces, failed))):
            raise Refused(
                self.storage.place,
                "it has no images: all are in quarantine",
                f"compute them again with: dhr-batch quarantine retry {self.storage.place}",
            )
        return found

    def _items(
        self,
        marks: Mapping[int, tuple[int, str]],
        faces: Mapping[int, Manifest],
        failed: set[str],
    ) -> Iterator[Item]:
        place, alone = self.storage.address, Manifest()
        for shard, ids in enumerate(self.plan.shards):
            size, etag = marks[shard]
            for image_id in ids:
                if image_id not in failed:
                    for face in faces.get(shard, alone).rows_of(image_id):
                        yield Item(face, place, "", size, shard, etag)

    def check(self, config: Config) -> None:
        """Check that the settings of a new run fit the stored results.

        Args:
            config: The resolved settings of the new run.

        Raises:
            Refused: If they do not.
        """
        place = self.storage.place
        others = render_models(config) if "refine" not in config.stages else ()
        check_weights(self.plan.settings.generator, self.fingerprint.models, place, others)
        self._check_same(config)
        stored = self.settings.get("store_deltas")
        if "refine" in config.stages:
            return
        if config.store_deltas not in ("none", stored):
            raise Refused(
                f"store_deltas={config.store_deltas}",
                f"{place} was made with store_deltas={stored}, so it has no such deltas to copy",
                "leave this setting out, or use --set store_deltas=none",
            )
        if "edit" in config.stages and stored == "none" and config.refine["name"] != "none":
            raise Refused(
                place,
                "it was made with store_deltas=none, so it has no refined weights for the edits",
                "begin at refine with --set store_deltas=small, or make that run again with it",
            )

    def _check_same(self, config: Config) -> None:
        """Check that the new run does not change settings of stages that have already run."""
        earlier = [stage for stage in registry.STAGES if stage not in config.stages]
        fixed = ("generator", "seed", *earlier)
        stored = configs.build([self.settings, {"dataset": config.dataset}])
        before = configs.resolve(stored, 0, 1).model_dump(include=set(fixed))
        now = config.model_dump(include=set(fixed))
        changed = [line for _, line in differences(flat(before), flat(now))]
        if changed:
            listed = "\n  ".join(changed)
            raise Refused(
                f"a run that begins at {config.first_stage}",
                f"it takes the results of earlier stages from {self.storage.place}, which was made "
                f"with other settings:\n  {listed}",
                "leave these settings out, or start a run with them that begins with photographs",
            )
