"""What a later start does with a run folder: continue the run, extend it, or start over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from dhr_batch.pipeline import sealed
from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.config import differences, flat
from dhr_batch.pipeline.planning.plan import SCHEMA, Plan, Shard, cut, fingerprint
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.stored_plan import StoredPlan

_NAMED = 5
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
    compared = _Compared(stored, plan) if stored.schema == SCHEMA else None
    if lines := [*_changes(stored, plan, compared, extend)]:
        raise OtherRun(where, lines)
    assert compared is not None
    size = stored.settings.shard_size
    added = cut(compared.added, size, len(compared.shards))
    config = plan.config.model_copy(update={"shard_size": size})
    return replace(plan, config=config, shards=(*compared.shards, *added))


def _stored(run: RunFolder, where: object) -> StoredPlan | None:
    """Return the stored plan. Raises Refused if it is damaged, or lacks what is compared."""
    stored = run.plan()
    if stored is not None and stored.missing:
        raise run.damaged_plan(f"damaged (it lacks {stored.missing[0]!r})")
    return stored


def extended(stored: StoredPlan, plan: Plan) -> StoredPlan:
    """Return the stored plan with the additional shards of a continued plan.

    Images that `quarantine retry` has reopened get the marks of the continued plan.
    """
    now, before = plan.stored(), stored.contents or ()
    marks_now = now.contents or ()
    contents = [
        [mark if old is None else old for old, mark in zip(olds, marks, strict=True)]
        for olds, marks in zip(before, marks_now, strict=False)
    ]
    return replace(stored, shards=now.shards, contents=[*contents, *marks_now[len(before) :]])


def has_open_marks(stored: StoredPlan) -> bool:
    """Whether `quarantine retry` has reopened an image whose new mark is not stored yet."""
    return any(mark is None for marks in stored.contents or () for mark in marks)


def preview(run: RunFolder, plan: Plan, extend: bool = False) -> dict[str, Any] | None:
    """Return the progress of a run and its differences to a plan; None if there is no run.

    Raises:
        Refused: If the stored plan is damaged.
    """
    stored = _stored(run, run.storage.place)
    if stored is None:
        return None
    finished = run.committed().values()
    return {
        "changes": [*changes(stored, plan, extend)],
        "shards": {"total": len(stored.shards), "done": len(finished)},
        "images": {
            "total": stored.images,
            "done": sum(shard.ok for shard in finished),
            "quarantined": sum(shard.quarantined for shard in finished),
        },
    }


def changes(stored: StoredPlan, plan: Plan, extend: bool = False) -> Iterator[str]:
    """Yield the differences of a plan to the stored plan, as lines `key: old -> new`.

    Models that only one of the two names are ignored, as no row can depend on them.
    """
    compared = _Compared(stored, plan) if stored.schema == SCHEMA else None
    return _changes(stored, plan, compared, extend)


def _changes(
    stored: StoredPlan, plan: Plan, compared: _Compared | None, extend: bool
) -> Iterator[str]:
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
        added: The images that the stored plan does not have.
    """

    def __init__(self, stored: StoredPlan, plan: Plan) -> None:
        self.shards: list[Shard] = []
        self.missing: list[str] = []
        self.changed: list[str] = []
        items = _ItemsById(item for shard in plan.shards for item in shard.items)
        for ids, marks in zip(stored.shards, stored.contents or (), strict=True):
            found = [items.take(image_id) for image_id in ids]
            for image_id, mark, item in zip(ids, marks, found, strict=True):
                if item is None:
                    self.missing.append(image_id)
                elif mark not in (None, item.mark) and (change := _change(mark, item.mark)):
                    self.changed.append(f"{image_id} ({change})")
            self.shards.append(Shard(len(self.shards), tuple(filter(None, found))))
        self.added = items.rest()


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
        yield f"images: {len(missing)} missing{limit}: {_first_names(missing)}"
    if changed:
        yield f"images: {len(changed)} with different content: {_first_names(changed)}"
    if added and not extend:
        names = [item.image_id for item in added[: _NAMED + 1]]
        yield f"images: {len(added)} added: {_first_names(names)}; --extend adds them to the run"


def _change(old: int | str, new: int | str) -> str:
    """Describe how a mark has changed; "" if it has not.

    Etags are compared only if both marks have one, as a copy on a local disk has none.
    """
    (old_size, old_etag), (new_size, new_etag) = _parts(old), _parts(new)
    if old_size != new_size:
        return f"{old_size} -> {new_size} bytes"
    return "etag" if old_etag and new_etag and old_etag != new_etag else ""


def _parts(mark: int | str) -> tuple[str, str]:
    size, _, etag = str(mark).partition(":")
    return size, etag


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


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
    return run.clear() if text else []
