"""The plan and the manifests of a run, as every process may read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dhr_batch.pipeline import sealed, stopping
from dhr_batch.pipeline.errors import NoRun, Refused, StorageError
from dhr_batch.pipeline.runs.names import PLAN, SHARDS, is_record, manifest_key, part, shard_of
from dhr_batch.pipeline.runs.records import manifests, plan_file
from dhr_batch.pipeline.runs.records.manifests import Finished, Manifest, Summaries
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.storage.base import Storage, Version
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.threads import together

# The number of manifests read in parallel: an object store takes tens of milliseconds for each.
_READERS = 16
# The number of manifests held in memory at a time, of a few kilobytes each.
_MANIFESTS = 1000


class ChangedPlan(Refused):
    """The plan of a run can be read, but does not match its checksum."""


class RunRecords:
    """The records of a run, which a process may read without its lease.

    Args:
        place: The folder or URL of the run.

    Attributes:
        storage: The place of the run.
    """

    def __init__(self, place: str | Path | Storage) -> None:
        self.storage = connect(place)
        # The version of the plan that was read last, for whoever replaces it.
        self._plan_version: Version | None = None
        self._identity: str | None = None

    def plan(self) -> StoredPlan | None:
        """Return the stored plan, or None if the run has not started.

        Its lists of shards may be `plan_file.Rows`.

        Raises:
            Refused: If the plan is damaged, or a newer version of dhr-batch wrote it.
        """
        stored = self.storage.get(PLAN)
        self._plan_version = stored.version if stored else None
        if stored is None:
            return None
        self._identity = plan_file.identity(stored.content)
        try:
            plan = plan_file.loads(stored.content, self.storage.place)
        except sealed.Changed as error:
            raise ChangedPlan(
                self.storage.locate(PLAN),
                f"it is damaged or was changed ({error})",
                f"put back a copy of it; {sealed.ON_PURPOSE}",
            ) from error
        except ValueError as error:
            raise self.damaged_plan(f"damaged ({error})" if stored.content else "empty") from error
        if "shards" in plan.missing:
            raise self.damaged_plan("damaged (it lacks 'shards')")
        return plan

    def damaged_plan(self, how: str) -> Refused:
        """Return the error for a plan that cannot be used.

        Args:
            how: The defect, as an adjective.
        """
        return Refused(
            self.storage.locate(PLAN),
            f"it is {how}, and without it the images of the finished shards are unknown",
            "put back a copy of it, or choose another folder",
        )

    def started_plan(self) -> StoredPlan:
        """Return the stored plan.

        Raises:
            NoRun: If the place is not a run.
            Refused: If the plan cannot be used (see `plan`).
        """
        plan = self.plan()
        if plan is None:
            raise no_run(self.storage)
        return plan

    def committed(self) -> dict[int, Finished]:
        """Return the summaries of the committed shards, by shard number."""
        summaries = Summaries()
        return {shard: summaries.finished(manifest) for shard, manifest in self.each_manifest()}

    def manifests(self) -> dict[int, Manifest]:
        """Return the manifests of the committed shards, by shard number: a few kilobytes each."""
        return dict(self.each_manifest())

    def manifest(self, shard: int) -> Manifest | None:
        """Return the manifest of a shard, or None if it is not committed."""
        content = self.storage.read(manifest_key(shard))
        return self._parse(manifest_key(shard), content) if content else None

    def each_manifest(self) -> Iterator[tuple[int, Manifest]]:
        """Yield the number and manifest of each committed shard. Several are read in parallel."""
        keys = sorted(filter(is_record, self.storage.sizes(SHARDS)))
        for first in range(0, len(keys), _MANIFESTS):
            chunk = keys[first : first + _MANIFESTS]
            for key, content in zip(chunk, self._read(chunk), strict=True):
                if content:
                    yield shard_of(key), self._parse(key, content)

    def _read(self, keys: list[str]) -> list[bytes | None]:
        read = self.storage.read
        return stopping.interruptible(lambda: together(read, keys, _READERS))

    def _parse(self, key: str, content: bytes) -> Manifest:
        try:
            found = manifests.loads(content)
        except ValueError as error:
            raise damaged_record(self.storage, key, error) from error
        if wrong := found.stray(shard_of(key), self.identity()):
            raise damaged_record(self.storage, key, wrong)
        return found

    def identity(self) -> str | None:
        """Return the identity of the run, which is read once; None if there is no plan.

        It is empty in runs of earlier versions.
        """
        if self._identity is None and (content := self.storage.read(PLAN)) is not None:
            self._identity = plan_file.identity(content)
        return self._identity


def damaged_record(storage: Storage, key: str, error: object) -> StorageError:
    """Return the error for a damaged record of a shard."""
    return StorageError(
        storage.locate(key), f"it is damaged ({error})", damaged_manifest(shard_of(key))
    )


def damaged_manifest(shard: int) -> str:
    """Return the advice for a damaged record of a shard."""
    return (
        f"delete it and {part('*', shard)}, and the same command computes its shard again; "
        f"{sealed.ON_PURPOSE}"
    )


def no_run(place: Storage) -> NoRun:
    """Return the error for a place that is not a run."""
    exists = place.root.is_dir() if isinstance(place, LocalStorage) else bool(place.sizes())
    why = "it is not a run, because it has no plan.json" if exists else "it does not exist"
    return NoRun(place.place, why, "give the folder or URL of a run")
