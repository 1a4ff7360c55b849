"""Check that a run matches its records and contains every planned image exactly once.

Nothing is written, so a run can be verified while a driver is working on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel

from dhr_batch.pipeline import sealed
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.printable import first_names
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import (
    EARLIER,
    PLAN,
    SHARDS,
    STAGING,
    is_record,
    part,
    shard_of,
    staging,
)
from dhr_batch.pipeline.runs.own_parts import OwnParts, parts_among
from dhr_batch.pipeline.runs.reading import ChangedPlan, damaged_manifest
from dhr_batch.pipeline.runs.records import manifests
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.runs.verify_tables import Problem, check
from dhr_batch.pipeline.storage.base import Storage, is_part
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.ownership import RUN, Owned
from dhr_batch.pipeline.tables.schemas import TABLES

_WRITES_AGAIN = "then start the same command again: it writes them again"


class Verification(BaseModel):
    """The result of `verify`.

    Attributes:
        run: The folder or URL of the run.
        shards: The number of planned shards.
        verified: The number of shards that were checked: those that are finished and published.
        images: The number of planned images.
        done: The number of images with rows in the checked shards.
        quarantined: The number of images in quarantine in the checked shards.
        problems: What is wrong.
        notes: Remarks about things that are not wrong.
    """

    run: str
    shards: int = 0
    verified: int = 0
    images: int = 0
    done: int = 0
    quarantined: int = 0
    problems: list[Problem] = []
    notes: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether all shards were checked."""
        return self.verified == self.shards


def verify(place: str | Path | Storage) -> Verification:
    """Compare all published files with the manifests, and their rows with the plan.

    Raises:
        NoRun: If the place is not a run.
        Refused: If the plan of the run is damaged.
        StorageError: If the storage does not answer.
    """
    run = RunFolder(place)
    found = Verification(run=run.storage.place)
    try:
        plan = run.started_plan()
    except ChangedPlan as error:
        found.problems.append(Problem(file=PLAN, problem=error.why, way_out=error.way_out))
        return found
    # Read the lease first and list the files last, so that files which a driver commits in between
    # are not reported as orphans.
    busy = run.holder() is not None
    present = {
        shard_of(key): key
        for key, size in run.storage.sizes(SHARDS).items()
        # Manifests that were withdrawn are left empty in an object store, and only there.
        if (size or isinstance(run.storage, LocalStorage)) and is_record(key)
    }
    tables = plan.settings.tables
    sizes = run.storage.sizes()
    files = _Files(run.storage, plan.run, plan.shards, tables, present, sizes, busy)
    found.shards, found.images = len(files.plan), sum(map(len, files.plan))
    if not sealed.has_checksum(run.storage.read(PLAN) or b""):
        files.unsealed.append(PLAN)
    found.problems += files.planned_twice()
    for shard in range(len(files.plan)):
        if shard in present:
            _verify_shard(files, shard, found)
    found.problems += files.orphans(complete=len(present) >= found.shards)
    found.problems += _records(run.storage, files.sizes)
    found.notes += files.notes(found)
    return found


def _verify_shard(files: _Files, shard: int, found: Verification) -> None:
    manifest, problems = files.manifest(shard)
    if manifest is None:
        found.problems += problems
        return
    if files.unpublished(manifest):
        files.waiting.append(shard)
        return
    found.problems += check(
        files.storage, shard, files.plan[shard], files.tables, manifest, files.sizes
    )
    found.verified += 1
    found.done += manifest.ok
    found.quarantined += manifest.quarantined


@dataclass
class _Files:
    """The files of a run at the time of the check.

    Attributes:
        storage: The place of the run.
        run: The identity of the run.
        plan: The image ids of each shard.
        tables: The tables that each shard has.
        manifests: The key of the manifest of each committed shard.
        sizes: The size of each file in bytes.
        busy: Whether a driver is working on the run.
        waiting: Committed shards whose files are not published yet.
        stale: Reopened shards whose earlier rows can still be read.
        named: The keys of files that a manifest names.
        unsealed: The files of records without a checksum of themselves.
    """

    storage: Storage
    run: str
    plan: Sequence[list[str]]
    tables: Sequence[str]
    manifests: dict[int, str]
    sizes: dict[str, int]
    busy: bool
    waiting: list[int] = field(default_factory=list)
    stale: set[int] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    unsealed: list[str] = field(default_factory=list)

    @cached_property
    def staged(self) -> set[str]:
        """The folders of attempts that contain a file."""
        return {key.rpartition("/")[0] for key in self.sizes if key.startswith(f"{STAGING}/")}

    def planned_twice(self) -> Iterator[Problem]:
        """Yield a problem if the plan contains an image more than once."""
        counts = Counter(image_id for ids in self.plan for image_id in ids)
        twice = [image_id for image_id, count in counts.items() if count > 1]
        if twice:
            yield Problem(
                file="plan.json",
                problem=f"images are planned twice: {first_names(twice)}",
                way_out="put back a copy of it, or start over with --fresh",
            )

    def manifest(self, shard: int) -> tuple[Manifest | None, list[Problem]]:
        """Read the manifest of a shard. Returns None and the problems if it cannot be used."""
        key = self.manifests[shard]
        content = self.storage.read(key)
        if content is None:
            return None, []
        if not sealed.has_checksum(content):
            self.unsealed.append(key)
        try:
            manifest = manifests.loads_whole(content)
            if wrong := manifest.stray(shard, self.run):
                raise ValueError(wrong)
        except ValueError as error:
            problem = Problem(
                file=key, problem=f"damaged ({error})", way_out=damaged_manifest(shard)
            )
            # Any file of the shard may belong to the run.
            self.named |= {part(table, shard) for table in TABLES}
            return None, [problem]
        self.named |= {part(table, shard) for table in manifest.files}
        return manifest, []

    def unpublished(self, manifest: Manifest) -> bool:
        """Whether some files of a committed shard may not be published yet."""
        return staging(manifest.attempt) in self.staged

    def orphans(self, complete: bool) -> Iterator[Problem]:
        """Yield files of tables that no manifest names, and staged files that stay unused."""
        for key in sorted([*self.sizes, *_hidden(self.storage)]):
            if key in self.named or key.partition("/")[0] not in TABLES:
                continue
            if not is_part(key):
                problem = "not a finished file of a table; readers may fail on it"
            elif (shard := shard_of(key)) >= len(self.plan):
                problem = f"belongs to shard {shard}, which is not in the plan"
            elif shard in self.manifests or key in self._foreign:
                problem = "not named by any manifest"
            else:
                self.stale.add(shard)
                continue
            yield Problem(file=key, problem=problem, way_out="delete it")
        for key in self.sizes:
            if key.startswith(f"{SHARDS}/") and not is_record(key):
                problem = "no name of a manifest; nothing reads it"
                yield Problem(file=key, problem=problem, way_out="delete it")
        for shard, key in self.manifests.items():
            if shard >= len(self.plan):
                problem = "belongs to a shard that is not in the plan"
                yield Problem(file=key, problem=problem, way_out="delete it")
        left = [key for key in self.sizes if key.startswith(f"{STAGING}/")]
        if left and complete and not self.busy and not self.waiting:
            yield Problem(
                file=STAGING,
                problem=f"{len(left)} files left by a killed run",
                way_out="start the same command again: it deletes them",
            )

    @cached_property
    def _foreign(self) -> Collection[str]:
        """The parts without a manifest that the run has not written."""
        if self.busy:
            return ()  # The driver may just have committed their shards.
        parts = parts_among(self.sizes)
        stray = {key: size for key, size in parts.items() if shard_of(key) not in self.manifests}
        try:
            return set(OwnParts(self.storage).foreign(stray, {}))
        except StorageError:
            return ()  # `_records` tells of a damaged record.

    def notes(self, found: Verification) -> Iterator[str]:
        """Yield remarks about things that are not wrong."""
        todo = found.shards - len(self.manifests.keys() & set(range(found.shards)))
        if todo:
            yield f"{todo} of {found.shards} shards are not done; run the same command to go on"
        if self.waiting:
            yield (
                f"committed, but not published yet: shards {first_names(map(str, self.waiting))}; "
                "run the same command to publish them"
            )
        if self.stale:
            yield (
                f"to be computed again: shards {first_names(map(str, sorted(self.stale)))}; "
                "their earlier rows can be read until then"
            )
        if self.unsealed:
            yield (
                f"without a checksum of themselves, so that not all damage would be noticed: "
                f"{first_names(self.unsealed)}; an older version of dhr-batch wrote them, or they "
                "were changed on purpose"
            )
        if self.busy:
            yield "a driver is working on the run; what it commits during the check is not checked"


def _records(storage: Storage, keys: Iterable[str]) -> Iterator[Problem]:
    """Yield the problems of the marker, what it lists (README.md, report), and reopened shards.

    Args:
        storage: The place of the run.
        keys: The files of the run.

    Raises:
        StorageError: If the storage does not answer.
    """
    marker = Owned(storage, RUN)
    if error := _damage(storage, marker.key):
        way_out = f"delete it, README.md and report/, {_WRITES_AGAIN}"
        yield Problem(file=marker.key, problem=error, way_out=way_out)
    for key in sorted(marker.foreign(marker.files)):
        problem = f"damaged or changed: its sha256 is not the one in {marker.key}"
        yield Problem(file=key, problem=problem, way_out=f"delete it, {_WRITES_AGAIN}")
    for key in sorted(keys):
        is_earlier = is_record(key) and key.startswith(f"{EARLIER}/")
        if is_earlier and (error := _damage(storage, key)):
            yield Problem(file=key, problem=error, way_out=damaged_manifest(shard_of(key)))


def _damage(storage: Storage, key: str) -> str:
    """Return what is wrong with a record, or "" if nothing is."""
    content = storage.read(key)
    if content is not None:
        try:
            sealed.loads(content)
        except ValueError as error:
            return f"damaged ({error})"
    return ""


def _hidden(storage: Storage) -> list[str]:
    """Return the hidden files in the folders of tables, as some readers open them."""
    if not isinstance(storage, LocalStorage):
        return []
    found = (path for table in TABLES for path in (storage.root / table).glob(".*"))
    return [path.relative_to(storage.root).as_posix() for path in found]
