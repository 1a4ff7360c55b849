"""The photographs of a run, read again from its dataset."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np

from dhr_batch.pipeline.datasets import listing, named
from dhr_batch.pipeline.datasets.items import Item, Unreadable
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import origin
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.pipeline.runs.stored_plan import Mark, StoredPlan
from dhr_batch.stages.base import TRUTH, ImageError
from dhr_batch.stages.decode import decode

_NO_TRUTH = "%s: %s images get no metrics against the ground truth: %s"

log = logging.getLogger(__name__)


class Lost(Exception):
    """One photograph cannot be had; the message is a class of reasons, not a sentence."""


class Photographs:
    """Photographs by image id, decoded as the run decoded them; the last one is kept.

    place: name, folder or URL of the dataset, if it is not where the run had it. Those of a run
    that began from another one are the photographs of the first; where that is gone and `place` is
    given, nobody can tell changed ones. Raises Refused where there is no dataset.
    """

    def __init__(self, run: Run, place: str | None = None) -> None:
        settings = run.stored.settings
        self._megapixels = float(settings.section("align").get("max_megapixels", 64))
        try:
            plan = _first(run.stored, known=place is not None)
            place = place or plan.settings.dataset
            items = named.list_images(named.find(place))
        except Refused as error:
            where = f"at {place!r}" if place else "to be found"
            raise Refused(
                f"the photographs of {run.storage.place}",
                f"they are not {where}: {error}",
                "say where they are with --dataset",
            ) from error
        self._items = {item.image_id: item for item in items}
        self._marks = _marks(plan)
        self._last: tuple[str, np.ndarray] | None = None

    def item(self, image_id: str) -> Item:
        """Where it is. Raises Lost for one that is missing or has changed since the run."""
        item = self._items.get(image_id)
        if item is None:
            raise Lost("photograph missing")
        before = self._marks.get(image_id)
        # A copy in a store has an etag where the original has none.
        if type(before) is type(item.mark) and before != item.mark:
            raise Lost("photograph changed since the run")
        return item

    def read(self, image_id: str, size: tuple[int, int]) -> np.ndarray:
        """Its upright pixels, uint8 [H, W, 3]. size: width and height it had. Raises Lost."""
        if self._last and self._last[0] == image_id:
            return self._last[1]
        try:
            pixels, _ = decode(listing.read_bytes(self.item(image_id)), self._megapixels)
        except (Unreadable, ImageError) as error:
            raise Lost("photograph cannot be read") from error
        if pixels.shape[1::-1] != size:
            raise Lost("photograph changed since the run")
        self._last = (image_id, pixels)
        return pixels


def truths(run: Run) -> dict[str, Item]:
    """Image id -> where the ground truth of a synthetic picture is; {} for a run on others.

    What is gone or has changed since the run is left out with a warning.
    """
    try:
        if not any(name.startswith(TRUTH) for name in run.metric_names()):
            return {}
    except (ValueError, OSError, Refused) as error:
        # What is to be measured anew need not be whole; a truth that might be there is missed.
        log.warning(_NO_TRUTH, run.storage.place, "any", f"its metrics cannot be read: {error}")
        return {}
    try:
        pictures = Photographs(run)
    except Refused as error:
        log.warning(_NO_TRUTH, run.storage.place, "all", error.__cause__)
        return {}
    found, lost = {}, Counter[str]()
    for image_id in chain.from_iterable(run.stored.shards):
        try:
            found[image_id] = pictures.item(image_id)
        except Lost as error:
            lost[str(error)] += 1
    if lost:
        why = ", ".join(f"{reason} ({count}x)" for reason, count in lost.items())
        log.warning(_NO_TRUTH, run.storage.place, "some", why)
    return found


def _first(plan: StoredPlan, known: bool) -> StoredPlan:
    """The plan with the dataset and its marks; without marks where it is gone but not needed."""
    try:
        return origin.first_plan(plan)
    except Refused:
        if not known:
            raise
        return replace(plan, contents=None)


def _marks(plan: StoredPlan) -> dict[str, Mark | None]:
    """Image id -> what a changed file would change; empty for plans that do not say."""
    pairs = zip(plan.shards, plan.contents or (), strict=False)
    return {i: mark for ids, marks in pairs for i, mark in zip(ids, marks, strict=True)}
