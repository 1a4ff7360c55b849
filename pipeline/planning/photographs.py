"""Read the photographs of a run again from its dataset."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np

from dhr_batch.pipeline.datasets import listing, named
from dhr_batch.pipeline.datasets.items import (
    COPIED,
    ETAG,
    TIME,
    Item,
    Mark,
    Unreadable,
    difference,
)
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import contents, origin
from dhr_batch.pipeline.planning.contents import Suspect
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.stages.decode import decode
from dhr_batch.stages.failures import ImageError
from dhr_batch.stages.options.align import MAX_MEGAPIXELS
from dhr_batch.stages.record import TRUTH

_CHANGED = "photograph changed since the run"
_NO_TRUTH = "%s: %s images get no metrics against the ground truth: %s"

log = logging.getLogger(__name__)


class Lost(Exception):
    """A photograph cannot be used. The message is a class of reasons, to be counted."""


class Photographs:
    """The photographs of a run, decoded as the run decoded them. The last one is cached.

    If the run began from another run, its photographs are those of the first run. Photographs are
    compared by their content. Runs of earlier versions have not recorded it; then their marks in
    the plan are compared, unless the first run is missing and `place` is given.

    Args:
        run: The run.
        place: The name, folder or URL of the dataset, if it has been moved since the run.

    Raises:
        Refused: If there is no dataset.
    """

    def __init__(self, run: Run, place: str | None = None) -> None:
        settings = run.stored.settings
        self._megapixels = float(settings.section("align").get("max_megapixels", MAX_MEGAPIXELS))
        try:
            plan = _first_plan(run.stored, required=place is None)
            place = place or plan.settings.dataset
            items = named.list_images(named.find(place))
        except Refused as error:
            where = f" in {place!r}" if place else ""
            raise Refused(
                f"the photographs of {run.storage.place}",
                f"they cannot be found{where}: {error}",
                "give their folder with --dataset",
            ) from error
        self._items = {item.image_id: item for item in items}
        self._marks = _marks(plan)
        self._last: tuple[str, np.ndarray] | None = None

    def item(self, image_id: str) -> tuple[Item, str]:
        """Return the item of a photograph, and the difference of its mark ("" if there is none).

        Raises:
            Lost: If it is missing, or has another size than in the plan of the run.
        """
        item = self._items.get(image_id)
        if item is None:
            raise Lost("photograph missing")
        before = self._marks.get(image_id)
        change = "" if before is None else difference(before, item.mark)
        if change not in ("", ETAG, TIME, COPIED):
            raise Lost(_CHANGED)
        return item, change

    def read(self, image_id: str, size: tuple[int, int], sha256: str | None) -> np.ndarray:
        """Read the pixels of a photograph.

        Args:
            image_id: The photograph.
            size: Its width and height in pixels when the run read it.
            sha256: The content hash when the run read it; None if it is not known.

        Returns:
            uint8 [H, W, 3], rotated according to its EXIF orientation.

        Raises:
            Lost: If it is missing, has changed since the run, or cannot be read.
        """
        if self._last and self._last[0] == image_id:
            return self._last[1]
        item, change = self.item(image_id)
        try:
            data = listing.read_bytes(item, self._megapixels)
            if change == ETAG if sha256 is None else contents.digest(data) != sha256:
                raise Lost(_CHANGED)
            pixels, _ = decode(data, self._megapixels)
        except (Unreadable, ImageError) as error:
            raise Lost("photograph cannot be read") from error
        if pixels.shape[1::-1] != size:
            raise Lost(_CHANGED)
        self._last = (image_id, pixels)
        return pixels


def truths(run: Run) -> dict[str, Item]:
    """Find the ground truth of the synthetic pictures of a run.

    Pictures that are missing or have changed since the run are left out with a warning.

    Returns:
        The item of each picture; empty if the run has no metrics against a ground truth.
    """
    try:
        if not any(name.startswith(TRUTH) for name in run.metric_names()):
            return {}
    except (ValueError, OSError, Refused) as error:
        # A run with damaged metrics can be measured again, only without the ground truth.
        log.warning(_NO_TRUTH, run.storage.place, "any", f"its metrics cannot be read: {error}")
        return {}
    try:
        pictures = Photographs(run)
    except Refused as error:
        log.warning(_NO_TRUTH, run.storage.place, "all", error.__cause__)
        return {}
    found, lost, suspects = {}, Counter[str](), []
    for shard, ids in enumerate(run.stored.shards):
        for image_id in ids:
            try:
                found[image_id], change = pictures.item(image_id)
            except Lost as error:
                lost[str(error)] += 1
            else:
                if change:
                    suspects.append(Suspect(shard, found[image_id], change))
    for suspect, verdict in contents.compare(run.parts.records, suspects):
        if not verdict.same:
            del found[suspect.item.image_id]
            lost[_CHANGED] += 1
    if lost:
        why = ", ".join(f"{reason} ({count}x)" for reason, count in lost.items())
        log.warning(_NO_TRUTH, run.storage.place, "some", why)
    return found


def _first_plan(plan: StoredPlan, required: bool) -> StoredPlan:
    """Return the plan of the run that read the photographs.

    If that run is missing but not required, the given plan is returned without marks.
    """
    try:
        return origin.first_plan(plan)
    except Refused:
        if required:
            raise
        return replace(plan, contents=None)


def _marks(plan: StoredPlan) -> dict[str, Mark | None]:
    """Return the mark of each image; empty for plans of older versions, which have none."""
    pairs = zip(plan.shards, plan.contents or (), strict=False)
    return {i: mark for ids, marks in pairs for i, mark in zip(ids, marks, strict=True)}
