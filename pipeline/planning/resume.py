"""What a later start may do with a run folder: go on, add images, or start over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.config import differences, flat
from dhr_batch.pipeline.planning.plan import SCHEMA, Plan, Shard, cut, fingerprint
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.stored_plan import StoredPlan

_NAMED = 5
_CODE = (
    " (the source of the stages is another one: finish the run with the dhr-batch that began it, "
    "which was version {version}, start over with --fresh, or choose another folder with --out; "
    "if no row depends on the difference, write the new value of `code` into plan.json)"
)


class OtherRun(Refused):
    """The folder holds a run with other settings or images. changed: a line for each difference."""

    def __init__(self, where: object, changed: Sequence[str]) -> None:
        self.changed = "\n  ".join(changed)
        super().__init__(
            str(where),
            f"it holds a run with other settings or images:\n  {self.changed}",
            "use the same ones to go on with it, choose another folder with --out, or delete the "
            "run and start over with --fresh",
        )


def continued(run: RunFolder, where: object, plan: Plan, extend: bool = False) -> Plan:
    """The plan of this start in the shards of the stored one; new images in shards behind them.

    where: the run folder's name for people. Raises Refused, naming everything that differs and
    what to do: OtherRun for other settings or images; new images are refused unless `extend`.
    """
    stored = _stored(run, where)
    if stored is None:
        if finished := run.committed():
            raise Refused(
                str(where),
                f"it has {len(finished)} finished shards but no plan.json, so nobody can tell "
                "which images they hold",
                "put it back, or choose another folder with --out",
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
    """The plan of the folder. Raises Refused where it lacks what is compared."""
    stored = run.plan()
    if stored is not None and stored.missing:
        raise run.damaged_plan(f"damaged (it lacks {stored.missing[0]!r})")
    return stored


def extended(stored: StoredPlan, plan: Plan) -> StoredPlan:
    """The stored plan with the shards that a continued plan has behind it, and with the marks of
    images that are tried again; all else as it was."""
    now, before = plan.stored(), stored.contents or ()
    marks_now = now.contents or ()
    contents = [
        [mark if old is None else old for old, mark in zip(olds, marks, strict=True)]
        for olds, marks in zip(before, marks_now, strict=False)
    ]
    return replace(stored, shards=now.shards, contents=[*contents, *marks_now[len(before) :]])


def has_open_marks(stored: StoredPlan) -> bool:
    """Whether the content of an image is not settled, since `quarantine retry` gave it back."""
    return any(mark is None for marks in stored.contents or () for mark in marks)


def preview(run: RunFolder, plan: Plan, extend: bool = False) -> dict[str, Any] | None:
    """What a folder holds already and how that differs from `plan`; None where there is no run."""
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
    """How a plan differs from the stored one of the same folder, as `key: old -> new` lines.

    Models that only one of them knows do not count: no row can depend on them.
    """
    compared = _Compared(stored, plan) if stored.schema == SCHEMA else None
    return _changes(stored, plan, compared, extend)


def _changes(
    stored: StoredPlan, plan: Plan, compared: _Compared | None, extend: bool
) -> Iterator[str]:
    before, now = stored.fingerprint.to_json(), fingerprint(plan).to_json()
    if not plan.sized:
        # It came from the number of images; the stored shards stay as they are.
        now["config"] |= {"shard_size": stored.settings.shard_size}
    known = before["models"].keys() & now["models"].keys()
    old = flat({"schema": stored.schema} | _with_models(before, known))
    new = flat({"schema": SCHEMA} | _with_models(now, known))
    for key, line in differences(old, new):
        yield line + (_CODE.format(version=stored.fingerprint.version) if key == "code" else "")
    if compared is not None:
        yield from _changed_images(compared, plan, extend)


def _with_models(content: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return content | {"models": {name: content["models"][name] for name in names}}


class _Compared:
    """The images of a plan in the shards of the stored one.

    shards: of the images that are still there. gone: ids; changed: ids, with what changed; added:
    images that the stored plan has not.
    """

    def __init__(self, stored: StoredPlan, plan: Plan) -> None:
        self.shards: list[Shard] = []
        self.gone: list[str] = []
        self.changed: list[str] = []
        items = _InOrder(item for shard in plan.shards for item in shard.items)
        for ids, marks in zip(stored.shards, stored.contents or (), strict=True):
            found = [items.take(image_id) for image_id in ids]
            for image_id, mark, item in zip(ids, marks, found, strict=True):
                if item is None:
                    self.gone.append(image_id)
                elif mark not in (None, item.mark) and (what := _difference(mark, item.mark)):
                    self.changed.append(f"{image_id} ({what})")
            self.shards.append(Shard(len(self.shards), tuple(filter(None, found))))
        self.added = items.rest()


class _InOrder:
    """Images that are mostly asked for in their order: then no table of a million is made."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._next = next(items, None)
        self._table: dict[str, Item] | None = None

    def take(self, image_id: str) -> Item | None:
        if self._table is None:
            item = self._next
            if item is not None and item.image_id == image_id:
                self._next = next(self._items, None)
                return item
            self._table = {item.image_id: item for item in self.rest()}
        return self._table.pop(image_id, None)

    def rest(self) -> list[Item]:
        """Those not taken, in their order."""
        if self._table is not None:
            return list(self._table.values())
        return [] if self._next is None else [self._next, *self._items]


def _changed_images(compared: _Compared, plan: Plan, extend: bool) -> Iterator[str]:
    gone, changed, added = compared.gone, compared.changed, compared.added
    if gone:
        limit = f", or beyond --limit {plan.config.limit}" if plan.config.limit else ""
        yield f"images: {len(gone)} gone{limit}: {_some(gone)}"
    if changed:
        yield f"images: {len(changed)} with other content: {_some(changed)}"
    if added and not extend:
        names = [item.image_id for item in added[: _NAMED + 1]]
        yield f"images: {len(added)} added: {_some(names)}; --extend adds them to the run"


def _difference(old: int | str, new: int | str) -> str:
    """Sizes count always; etags only where both have one, as a copy may lie on a local disk."""
    (old_size, old_etag), (new_size, new_etag) = _parts(old), _parts(new)
    if old_size != new_size:
        return f"{old_size} -> {new_size} bytes"
    return "etag" if old_etag and new_etag and old_etag != new_etag else ""


def _parts(mark: int | str) -> tuple[str, str]:
    size, _, etag = str(mark).partition(":")
    return size, etag


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def question(run: RunFolder, where: object) -> str | None:
    """What must be confirmed before `--fresh` deletes a run; None where there is nothing."""
    finished = run.committed()
    if run.plan() is None and not finished:
        return None
    images = sum(shard.images for shard in finished.values())
    return f"Delete the run in {where} with {images} committed images and start over?"


def start_over(run: RunFolder, where: object, confirmed: bool) -> list[str]:
    """Delete the run that the folder holds. The caller holds the lease.

    Returns the files that are not of the run, and stay. Raises Refused where there is something to
    delete and the user did not agree, and where the next run would overwrite one of those files.
    """
    asked = question(run, where)
    if asked and not confirmed:
        raise Refused("--fresh", "it deletes finished work", f"{asked} Confirm with --yes")
    return run.clear() if asked else []
