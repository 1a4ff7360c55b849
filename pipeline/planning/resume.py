"""What a later start does with a run folder: continue the run, extend it, or start over."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from dhr_batch.pipeline import sealed
from dhr_batch.pipeline.datasets.items import COPIED, TIME, Item, difference
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.contents import Suspect, Verdict, compare
from dhr_batch.pipeline.planning.layers import differences, flat
from dhr_batch.pipeline.planning.plan import SCHEMA, Plan, Shard, cut, fingerprint
from dhr_batch.pipeline.printable import first_names
from dhr_batch.pipeline.runs.deletion import delete
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.records.stored_plan import Made, StoredPlan

_CODE = (
    " (the source of the stages is different: finish the run with the dhr-batch that started it, "
    "which was version {version}, start over with --fresh, or choose another folder with --out; "
    "if no row depends on the difference, write the new value of `code` into plan.json and delete "
    f"its first key {sealed.KEY!r})"
)


class OtherRun(Refused):
    """The folder holds a run with other settings or images.

    Args:
        where: The folder or URL of the run.
        changed: A line for each difference.
    """

    def __init__(self, where: object, changed: Sequence[str]) -> None:
        self.lines = list(changed)
        self.changed = "\n  ".join(changed)
        super().__init__(
            str(where),
            f"it holds a run with other settings or images:\n  {self.changed}",
            "use the same ones to go on with it, choose another folder with --out, or delete the "
            "run and start over with --fresh",
        )


def continued(run: RunFolder, where: object, plan: Plan, extend: bool = False) -> Plan:
    """Return a plan with its images in the shards of the stored plan of a run folder.

    New images form additional shards behind the existing ones.

    Images whose marks differ from the stored ones are compared by their content, as far as the run
    has recorded it.

    Args:
        run: The run folder.
        where: The folder or URL of the run, for messages.
        plan: The plan of this start.
        extend: Whether to allow new images.

    Returns:
        The plan itself if the run folder is new.

    Raises:
        OtherRun: If the run has other settings or images. The message lists all differences.
        Refused: If the stored plan is missing or damaged.
    """
    stored = _stored(run, where)
    if stored is None:
        if finished := run.committed():
            raise Refused(
                str(where),
                f"it has {len(finished)} finished shards but no plan.json, so their images are "
                "unknown",
                "put plan.json back, or choose another folder with --out",
            )
        return plan
    compared = _Compared(run, stored, plan) if stored.schema == SCHEMA else None
    if lines := [*_changes(stored, plan, compared, extend)]:
        raise OtherRun(where, lines)
    assert compared is not None
    size = stored.settings.shard_size
    added = cut(compared.added, size, len(compared.shards))
    config = plan.config.model_copy(update={"shard_size": size})
    shards = (*compared.shards, *added)
    return replace(plan, config=config, shards=shards, compared=compared.summary())


def _stored(run: RunFolder, where: object) -> StoredPlan | None:
    """Return the stored plan. Raises Refused if it is damaged, or lacks what is compared."""
    stored = run.plan()
    if stored is not None and stored.missing:
        raise run.damaged_plan(f"damaged (it lacks {stored.missing[0]!r})")
    return stored


def extended(stored: StoredPlan, plan: Plan) -> StoredPlan:
    """Return the stored plan with the additional shards and the marks of a continued plan.

    A size that an earlier version has stored as a mark is kept, because the content of such an
    image is not known.
    """
    now, before = plan.stored(), stored.contents or ()
    marks_now = now.contents or ()

    def marks(shard: int) -> list[Any]:
        if shard >= len(before):
            return marks_now[shard]
        pairs = zip(before[shard], marks_now[shard], strict=True)
        return [old if isinstance(old, int) else mark for old, mark in pairs]

    contents = Made(len(marks_now), marks)
    return replace(stored, shards=now.shards, contents=contents, ignored=now.ignored)


def has_open_marks(stored: StoredPlan) -> bool:
    """Whether `quarantine retry` has reopened an image whose new mark is not stored yet."""
    return any(mark is None for marks in stored.contents or () for mark in marks)


def progress(run: RunFolder) -> dict[str, Any] | None:
    """Return the numbers of shards and images of a run that are finished; None if there is no run.

    Raises:
        Refused: If the stored plan is damaged.
    """
    stored = _stored(run, run.storage.place)
    if stored is None:
        return None
    finished = run.committed().values()
    return {
        "shards": {"total": len(stored.shards), "done": len(finished)},
        "images": {
            "total": stored.images,
            "done": sum(shard.ok for shard in finished),
            "quarantined": sum(shard.quarantined for shard in finished),
        },
    }


def _changes(
    stored: StoredPlan, plan: Plan, compared: _Compared | None, extend: bool
) -> Iterator[str]:
    """Yield the differences of a plan to the stored plan, as lines `key: old -> new`.

    Models that only one of the two names are ignored, as no row can depend on them.
    """
    before, now = stored.fingerprint.to_json(), fingerprint(plan).to_json()
    if not plan.sized:
        # The size was derived from the number of images. The stored shards keep their size.
        now["config"] |= {"shard_size": stored.settings.shard_size}
    common = before["models"].keys() & now["models"].keys()
    old = flat({"schema": stored.schema} | _with_models(before, common))
    new = flat({"schema": SCHEMA} | _with_models(now, common))
    for key, line in differences(old, new):
        yield line + (_CODE.format(version=stored.fingerprint.version) if key == "code" else "")
    if compared is not None:
        yield from _changed_images(compared, plan, extend)


def _with_models(content: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return content | {"models": {name: content["models"][name] for name in names}}


class _Compared:
    """The images of a plan, compared with those of a stored plan.

    Attributes:
        shards: The shards of the stored plan, with the images that still exist.
        missing: The ids of images that do not exist any more.
        changed: The ids of images that have changed, each with the change.
        repaired: The same of images in quarantine.
        added: The images that the stored plan does not have.
    """

    def __init__(self, run: RunFolder, stored: StoredPlan, plan: Plan) -> None:
        self.run = run
        self.shards: list[Shard] = []
        self.missing: list[str] = []
        self.changed: list[str] = []
        self.repaired: list[str] = []
        self._same = self._unread = 0
        suspects: list[Suspect] = []
        items = _ItemsById(item for shard in plan.shards for item in shard.items)
        for ids, marks in zip(stored.shards, stored.contents or (), strict=True):
            found = [items.take(image_id) for image_id in ids]
            for image_id, mark, item in zip(ids, marks, found, strict=True):
                if item is None:
                    self.missing.append(image_id)
                elif mark not in (None, item.mark) and (change := difference(mark, item.mark)):
                    suspects.append(Suspect(len(self.shards), item, change))
            self.shards.append(_shard(plan, len(self.shards), tuple(filter(None, found))))
        self.added = items.rest()
        if plan.origin is not None:
            # The mark of a record of an earlier run has the checksums of its tables.
            self.changed = [f"{item.image_id} ({change})" for _, item, change in suspects]
            return
        for suspect, verdict in compare(run, suspects):
            self._decide(suspect, verdict)

    def _decide(self, suspect: Suspect, verdict: Verdict) -> None:
        _, item, change = suspect
        # A shard that is to be computed has no rows, and a worker that crashed has read nothing.
        unread = verdict.same is None and (verdict.in_quarantine or not verdict.has_rows)
        if verdict.same:
            self._same += 1
        elif unread and change in (TIME, COPIED):
            self._unread += 1
        else:
            changed = self.repaired if verdict.in_quarantine else self.changed
            changed.append(f"{item.image_id} ({change})")

    def summary(self) -> str:
        """Describe what was found out about images with other marks; "" if there are none."""
        parts = []
        if self._same:
            parts.append(f"{self._same} images whose size or time differs have the same content")
        if self._unread:
            parts.append(f"{self._unread} images with another time have no rows yet")
        return "; ".join(parts)


def _shard(plan: Plan, index: int, items: tuple[Item, ...]) -> Shard:
    """Return a shard, the one of the plan if it has the same images, so that it is stored once."""
    same = index < len(plan.shards) and plan.shards[index].items == items
    return plan.shards[index] if same else Shard(index, items)


class _ItemsById:
    """Looks up items by id. While they are looked up in their own order, no dictionary is built.

    A dictionary of a million items would take much memory, and the order rarely differs.
    """

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._next = next(items, None)
        self._by_id: dict[str, Item] | None = None

    def take(self, image_id: str) -> Item | None:
        """Remove an item and return it; None if no item has this id."""
        if self._by_id is None:
            item = self._next
            if item is not None and item.image_id == image_id:
                self._next = next(self._items, None)
                return item
            self._by_id = {item.image_id: item for item in self.rest()}
        return self._by_id.pop(image_id, None)

    def rest(self) -> list[Item]:
        """Return the remaining items in their order."""
        if self._by_id is not None:
            return list(self._by_id.values())
        return [] if self._next is None else [self._next, *self._items]


def _changed_images(compared: _Compared, plan: Plan, extend: bool) -> Iterator[str]:
    missing, changed, added = compared.missing, compared.changed, compared.added
    if missing:
        limit = f", or beyond --limit {plan.config.limit}" if plan.config.limit else ""
        yield f"images: {len(missing)} missing{limit}: {first_names(missing)}"
    if changed:
        yield f"images: {len(changed)} with different content: {first_names(changed)}"
    if compared.repaired:
        place = shlex.quote(compared.run.storage.place)
        yield (
            f"images: {len(compared.repaired)} in quarantine with different content: "
            f"{first_names(compared.repaired)}; to try repaired ones again, give: "
            f"dhr-batch quarantine retry {place}"
        )
    if added and not extend:
        names = first_names(item.image_id for item in added)
        yield f"images: {len(added)} added: {names}; --extend adds them to the run"


def question(run: RunFolder, where: object) -> str | None:
    """Return the question to confirm before `--fresh` deletes a run; None if there is no run."""
    finished = run.committed()
    if run.plan() is None and not finished:
        return None
    images = sum(shard.images for shard in finished.values())
    return f"Delete the run in {where} with {images} committed images and start over?"


def start_over(run: RunFolder, where: object, confirmed: bool) -> list[str]:
    """Delete the run in a folder. The caller must hold the lease.

    Args:
        run: The run folder.
        where: The folder or URL of the run, for messages.
        confirmed: Whether the user has confirmed the deletion.

    Returns:
        The remaining files, which do not belong to the run.

    Raises:
        Refused: If the user has not confirmed the deletion, or if the next run would overwrite one
            of the remaining files.
    """
    text = question(run, where)
    if text and not confirmed:
        raise Refused("--fresh", f"it deletes finished work: {text}", "confirm with --yes")
    return delete(run) if text else []
