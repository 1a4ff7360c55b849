"""Whether a run holds what its manifests say, and every planned image exactly once.

Writes nothing, so that it may look at a run while a driver works on it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel

from dhr_batch.pipeline.runs import manifests
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.manifests import Manifest
from dhr_batch.pipeline.runs.names import STAGING, part, staging
from dhr_batch.pipeline.runs.verify_tables import AGAIN, Problem, check, first_names
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.tables.schemas import TABLES

_PART = re.compile(r"part-(\d{5,})\.parquet")
_MANIFEST = re.compile(r"_state/shards/(\d{5,})\.json")


class Verification(BaseModel):
    """Counts are of the shards looked at: finished and published. notes: harmless remarks."""

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
        return self.verified == self.shards


def verify(place: str | Path | Storage) -> Verification:
    """Compare all published files with the manifests, and their rows with the plan.

    Raises Refused where there is no run or its plan is damaged, and StorageError where a file
    cannot be read now.
    """
    run = RunFolder(place)
    found = Verification(run=run.storage.place)
    plan = run.started_plan()
    # The lease first and the files last: what a driver commits meanwhile is not called an orphan.
    busy = run.holder() is not None
    present = {
        int(match[1]): key
        for key, size in run.storage.sizes("_state/shards").items()
        # One that was taken back may be left empty.
        if size and (match := _MANIFEST.fullmatch(key))
    }
    look = _Look(run.storage, plan.shards, present, run.storage.sizes(), busy)
    found.shards, found.images = len(look.plan), sum(map(len, look.plan))
    found.problems += look.planned_twice()
    for shard in range(len(look.plan)):
        if shard in present:
            _verify_shard(look, shard, found)
    found.problems += look.orphans(complete=len(present) >= found.shards)
    found.notes += look.notes(found)
    return found


def _verify_shard(look: _Look, shard: int, found: Verification) -> None:
    manifest, problems = look.manifest(shard)
    if manifest is None:
        found.problems += problems
        return
    if look.unpublished(manifest):
        look.waiting.append(shard)
        return
    found.problems += check(look.storage, shard, look.plan[shard], manifest, look.sizes)
    found.verified += 1
    found.done += manifest.ok
    found.quarantined += manifest.quarantined


@dataclass
class _Look:
    """A run as it was listed. sizes: bytes by key. waiting: committed shards that a killed driver
    has not published; stale: shards to do of which an earlier result can still be read."""

    storage: Storage
    plan: Sequence[list[str]]
    manifests: dict[int, str]
    sizes: dict[str, int]
    busy: bool
    waiting: list[int] = field(default_factory=list)
    stale: set[int] = field(default_factory=set)
    named: set[str] = field(default_factory=set)

    @cached_property
    def staged(self) -> set[str]:
        """Folders of attempts that hold a file."""
        return {key.rpartition("/")[0] for key in self.sizes if key.startswith(f"{STAGING}/")}

    def planned_twice(self) -> Iterator[Problem]:
        counts = Counter(image_id for ids in self.plan for image_id in ids)
        twice = [image_id for image_id, count in counts.items() if count > 1]
        if twice:
            yield Problem(
                file="plan.json",
                problem=f"images are planned twice: {first_names(twice)}",
                way_out="put back a copy of it, or start over with --fresh",
            )

    def manifest(self, shard: int) -> tuple[Manifest | None, list[Problem]]:
        key = self.manifests[shard]
        content = self.storage.read(key)
        if content is None:
            return None, []
        try:
            manifest = manifests.loads_whole(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"damaged ({type(error).__name__}: {error})"
            problem = Problem(file=key, problem=what, way_out=f"delete it, then {AGAIN}")
            # Which of the files belong to the run cannot be told.
            self.named |= {part(table, shard) for table in TABLES}
            return None, [problem]
        self.named |= {part(table, shard) for table in manifest.files}
        return manifest, []

    def unpublished(self, manifest: Manifest) -> bool:
        """Whether a driver was, or is, between the commit and the end of publishing."""
        return staging(manifest.attempt) in self.staged

    def orphans(self, complete: bool) -> Iterator[Problem]:
        """Files in table folders that no manifest names, and staging that nobody will publish."""
        for key in sorted([*self.sizes, *_hidden(self.storage)]):
            table, _, name = key.partition("/")
            if key in self.named or table not in TABLES:
                continue
            match = _PART.fullmatch(name)
            if match is None:
                problem = "not a finished file of a table; readers may fail on it"
            elif int(match[1]) >= len(self.plan):
                problem = f"of shard {int(match[1])}, which is not in the plan"
            elif int(match[1]) in self.manifests:
                problem = "in no manifest"
            else:
                self.stale.add(int(match[1]))
                continue
            yield Problem(file=key, problem=problem, way_out="delete it")
        for shard, key in self.manifests.items():
            if shard >= len(self.plan):
                problem = "of a shard that is not in the plan"
                yield Problem(file=key, problem=problem, way_out="delete it")
        left = [key for key in self.sizes if key.startswith(f"{STAGING}/")]
        if left and complete and not self.busy and not self.waiting:
            yield Problem(
                file=STAGING,
                problem=f"{len(left)} files left by a killed run",
                way_out="start the same command again: it deletes them",
            )

    def notes(self, found: Verification) -> Iterator[str]:
        todo = found.shards - len(self.manifests.keys() & set(range(found.shards)))
        if todo:
            yield f"{todo} of {found.shards} shards are not done; the same command goes on"
        if self.waiting:
            yield (
                f"committed, but not published yet: shards {first_names(map(str, self.waiting))}; "
                "the same command publishes them"
            )
        if self.stale:
            yield (
                f"to be made again: shards {first_names(map(str, sorted(self.stale)))}; "
                "their earlier rows stay readable until then"
            )
        if self.busy:
            yield "a driver is at work; what it commits meanwhile was not looked at"


def _hidden(storage: Storage) -> list[str]:
    """Names with a dot in table folders: some readers open them all the same."""
    if not isinstance(storage, LocalStorage):
        return []
    found = (path for table in TABLES for path in (storage.root / table).glob(".*"))
    return [path.relative_to(storage.root).as_posix() for path in found]
