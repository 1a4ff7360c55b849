"""How the tables of a shard become part of a run: all of them, once, or none.

A run, in a folder or in an object store, holds `plan.json`, `_state/`, `_staging/` and one folder
per table that contains finished `part-00017.parquet` files only. The order of the writes is what
makes a kill at any moment harmless:

1. `plan.json` is created before any shard starts, so every later start agrees on which images form
   which shard. It changes only where new images are added: as shards behind the others, in one
   atomic step.
2. A worker writes complete tables to local scratch, reads their footers back, and brings them to
   `_staging/{attempt}/`, which no other attempt uses. In a folder that is the scratch itself, made
   durable by fsync; in an object store each file is one upload, signed with its checksum and
   visible as a whole or not at all. Until step 3 nothing refers to them: a kill leaves rubbish
   that the next start deletes.
3. The driver creates `_state/shards/00017.json`, which names the attempt and the bytes and checksum
   of each file. Creation fails if the name exists (a hard link; `If-None-Match` in an object
   store), so exactly one attempt of a shard can win. This is the commit point; the manifest is
   complete and durable when its name appears.
4. The driver publishes the files as `{table}/part-00017.parquet`: by a move in a folder, by a
   server-side copy in an object store, all tables at once. Each is atomic and may be repeated, in
   any order, and neither needs the whole table to be written again. A kill in between leaves a
   committed shard of which some files are only staged: the next start reads the manifest and
   publishes them (rolls forward).
5. The staging folder is removed, last, because step 4 may still need it.

Committing before publishing means that readers may briefly miss tables of a committed shard but
never see rows of a shard that could still be computed again.

Only the driver that holds the lease (`pipeline/runs/lease.py`) commits, and it checks that before
step 3 and before each file of step 4. Workers of a killed driver write to staging folders that
nobody will ever commit. A lease in an object store can be lost between the check and the write,
when the machine freezes in between; the new driver has then deleted the staging that the late
manifest names. Therefore a manifest counts only if each of its files is staged or published with
the size it says; one that does not is void, and whoever holds the lease puts its own in its place.
A late manifest whose files are all there is as good as any: the shard is finished by it, and the
other attempt is discarded.

Writes that change something take effect only while it is as the writer has seen it: `plan.json` and
manifests are replaced and taken back on the condition of their etag. A driver that was frozen
before such a write finds the content of the new driver there, changes nothing and stops. Not every
store deletes on a condition, so a manifest that is taken back there is left empty, which readers
take for none. In a folder the lease is a lock that a frozen process still holds, so that nobody can
take over before it is gone; it is checked, with the file's identity, right before the change. What
remains are deletions: a frozen driver may delete staging of the new one, whose commit then stops
before or at step 4, and the next start makes that shard again. A frozen `--fresh`, which deletes
all files of the run, is the one case that can cost finished shards of a new driver; it checks the
lease before each table.

Finished shards can be given back to be made again (`reopen`, for `quarantine retry`). Under the
lease, after rolling forward what a kill left, `plan.json` is replaced by one that allows another
content of the chosen images; then the manifest of each shard is taken back, the reverse of step 3.
A kill before that leaves a finished shard with its old rows, a kill after it a shard to do; the
same call goes on with the others. The published files stay as they are, so readers see the old rows
until step 4 of the new attempt replaces them, table by table. That they are of this run is noted
before the manifest is taken back, in `_state/earlier/00017.json`. One gap is left to `dhr-batch
verify`, which compares checksums: a late manifest in an object store, as above, counts with the old
files of such a shard where these happen to have the sizes it says.

Only files of the run are overwritten or deleted (`pipeline/storage/ownership.py`): parts of tables
of which a manifest says the size, attempts in staging by their names, which no one else can know,
and files that the marker of the run lists. A start refuses to go on where another file has the name
of a part. In a folder that is looked at again before each file of step 4, in an object store it
would cost a request per table.

A table is one upload or copy, which S3 limits to 5 GB for copies: keep shards below. Uploads of a
killed worker may leave invisible parts in a bucket; a lifecycle rule that aborts incomplete
multipart uploads removes them.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dhr_batch.pipeline import crash, stopping
from dhr_batch.pipeline.errors import NoRun, Refused, StorageError
from dhr_batch.pipeline.runs import manifests, plan_file, status_file
from dhr_batch.pipeline.runs.lease import Holder, LeaseLost, lease
from dhr_batch.pipeline.runs.manifests import Alike, Finished, Manifest
from dhr_batch.pipeline.runs.names import PLAN, SHARDS, STAGING, manifest_key, part, staging
from dhr_batch.pipeline.runs.status_file import STATUS
from dhr_batch.pipeline.runs.stored_plan import StoredPlan
from dhr_batch.pipeline.stopping import Interrupted
from dhr_batch.pipeline.storage.base import Object, Storage, Version, is_part
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.ownership import RUN, Owned, listed
from dhr_batch.pipeline.tables.schemas import TABLES
from dhr_batch.pipeline.threads import together

_EARLIER = "_state/earlier"
# Manifests are small and an object store answers each in tens of milliseconds.
_READERS = 16
# As many are held as a whole, of each a few kilobytes.
_MANIFESTS = 1000
# Tables of a shard that are copied at once: all of them.
_COPIES = 8

_STAGED = re.compile(rf"{STAGING}/\d{{5,}}\.\d+\.\w+/({'|'.join(TABLES)})\.parquet")
_RECORD = re.compile(r"_state/(shards|earlier)/\d{5,}\.json")
# What stays when a run is deleted: the lease is held, and the logs are for people.
_KEPT = re.compile(r"_state/(lease|clock|owner\.json|logs/worker-.*\.log)")

log = logging.getLogger(__name__)


def _is_staged(key: str) -> bool:
    """Whether a file is of an attempt: workers choose names that nobody else has."""
    return _STAGED.fullmatch(key) is not None


class RunFolder:
    """The protocol above. One driver at a time (`lock`); readers need no lock.

    lease_timeout: seconds after which a silent driver on another machine may be replaced.
    """

    def __init__(self, place: str | Path | Storage, lease_timeout: float = 60.0) -> None:
        self.storage = connect(place)
        self._lease = lease(self.storage, lease_timeout)
        self._plan_version: Version | None = None

    def lock(self) -> None:
        """Take the run for this process. Raises Refused where another process holds it."""
        self._lease.take()

    def check(self) -> None:
        """Raises LeaseLost where this process may no longer commit."""
        self._lease.check()

    def unlock(self) -> None:
        """Give the run back. A store that does not answer frees it by itself, after the timeout."""
        try:
            self._lease.release()
        except (StorageError, Interrupted) as error:
            log.warning("the run was not given back: %s", error or "interrupted")

    def plan(self) -> StoredPlan | None:
        """The plan this run was started with, or None for a new one.

        Its lists of shards may be `plan_file.Rows`. Raises Refused for one that is damaged, or of
        a version that this program does not know.
        """
        there = self.storage.get(PLAN)
        self._plan_version = there.version if there else None
        if there is None:
            return None
        try:
            plan = plan_file.loads(there.content, self.storage.place)
        except ValueError as error:
            raise self.damaged_plan(f"damaged ({error})" if there.content else "empty") from error
        if "shards" in plan.missing:
            raise self.damaged_plan("damaged (it lacks 'shards')")
        return plan

    def damaged_plan(self, how: str) -> Refused:
        """The error for a plan that cannot be used."""
        return Refused(
            self.storage.locate(PLAN),
            f"it is {how}, so nobody can tell which images the finished shards hold",
            "put back a copy of it, or choose another folder",
        )

    def started_plan(self) -> StoredPlan:
        """The plan of a run that was started. Raises NoRun for any other place."""
        plan = self.plan()
        if plan is None:
            raise no_run(self.storage)
        return plan

    def write_plan(self, plan: StoredPlan) -> None:
        if not self.storage.create(PLAN, plan_file.dumps(plan)):
            raise Refused(self.storage.locate(PLAN), "it appeared while starting", "start again")
        crash.at("after-plan")

    def replace_plan(self, plan: StoredPlan) -> None:
        """Put a changed plan in place of the one that `plan` returned last.

        The caller holds the lease. Raises LeaseLost where another driver changed it meanwhile.
        """
        content = plan_file.dumps(plan)
        self.check()
        self._plan_version = self.storage.swap(PLAN, content, self._plan_version)
        if self._plan_version is None:
            raise self._changed(PLAN)

    def clear(self) -> list[str]:
        """Delete the files of the run, but not the lease, which the caller holds, and the logs.

        The manifests go after the parts that they name, the plan goes last: killed in between, the
        folder is a run whose shards are to be made. Returns the files that are not of the run and
        stay. Raises Refused, before anything is deleted, where the next run would overwrite one.
        """
        owned = Owned(self.storage, RUN)
        sizes = self.storage.sizes()
        known: dict[str, int] = {}
        plan = self.plan()
        if plan is not None and {"schema", "shards"} & set(plan.missing):
            place = self.storage.locate(PLAN)
            raise Refused(f"{place} is not the plan of a run, but another file: move it away")
        for shard, manifest in self.each_manifest():
            known |= self._bytes(shard, manifest)
        parts = self._parts_of(sizes)
        self._require_own(parts, known)
        others = owned.foreign(owned.files)
        rest = [key for key in owned.files if key not in others]
        with suppress(status_file.Damaged):
            status_file.read_status(self.storage)
            rest.append(STATUS)
        groups = [[key for key in parts if key.startswith(f"{table}/")] for table in TABLES]
        groups += [list(filter(pattern.fullmatch, sizes)) for pattern in (_STAGED, _RECORD)]
        for keys in (*groups, rest, [PLAN]):
            self.check()
            self.storage.remove(keys)
        owned.forget(rest)
        if owned.found_kind:
            owned.claim(unlisted=False)
        left = set(sizes).difference(*groups, rest, [PLAN])
        return sorted(key for key in left if not _KEPT.fullmatch(key))

    @staticmethod
    def _parts_of(sizes: Mapping[str, int]) -> dict[str, int]:
        """Those of the files that have the name of a part of a table."""
        return {
            key: size
            for key, size in sizes.items()
            if is_part(key) and key.partition("/")[0] in TABLES
        }

    def _bytes(self, shard: int, manifest: Manifest) -> dict[str, int]:
        """The parts that a manifest names, and how large they are. Raises StorageError."""
        if not manifest.attempt:
            raise self._damaged(manifest_key(shard), "it names no attempt")
        return {part(table, shard): facts.bytes for table, facts in manifest.files.items()}

    def _require_own(self, parts: Mapping[str, int], known: Mapping[str, int]) -> None:
        """Raises Refused for parts that are not of this run. known: those that manifests name."""
        earlier: dict[int, dict[str, list[int]]] = {}
        others = {}
        for key, size in parts.items():
            if known.get(key) != size:
                shard = int(key.rpartition("part-")[2].removesuffix(".parquet"))
                if shard not in earlier:
                    earlier[shard] = self._earlier(shard)
                if size not in earlier[shard].get(key, ()):
                    others[key] = shard
        if others and Owned(self.storage, RUN).unlisted:
            # Of such a run the plan alone tells which parts it has.
            planned = len(plan_file.loads(self.storage.read(PLAN) or b"{}").shards)
            others = {key: shard for key, shard in others.items() if shard >= planned}
        if others:
            raise Refused(
                f"{listed([self.storage.locate(key) for key in others])}: not as a manifest of the "
                "run says, so this file is not one that the run wrote, or it was changed since; "
                "nothing is written over it. Move it away or delete it, then give the same "
                "command again"
            )

    def _earlier(self, shard: int) -> dict[str, list[int]]:
        """Files of a shard as they were before it was given back: key -> possible bytes."""
        key = f"{_EARLIER}/{shard:05d}.json"
        try:
            return json.loads(self.storage.read(key) or b"{}")
        except ValueError as error:
            raise self._damaged(key, error) from error

    def _note_earlier(self, shard: int, manifest: Manifest) -> None:
        """Keep what shows that the published files of a manifest are of this run."""
        known = self._earlier(shard)
        for key, size in self._bytes(shard, manifest).items():
            known[key] = sorted({size, *known.get(key, ())})
        content = json.dumps(known).encode()
        self.storage.replace(f"{_EARLIER}/{shard:05d}.json", content)

    def committed(self) -> dict[int, Finished]:
        """What is known of the committed shards, by shard number."""
        alike = Alike()
        return {shard: alike.finished(manifest) for shard, manifest in self.each_manifest()}

    def manifests(self) -> dict[int, Manifest]:
        """All that is known of the committed shards, by shard number: a few kilobytes each."""
        return dict(self.each_manifest())

    def each_manifest(self) -> Iterator[tuple[int, Manifest]]:
        """Shards and manifests, of which some are read at once."""
        keys = sorted(key for key in self.storage.sizes(SHARDS) if key.endswith(".json"))
        for first in range(0, len(keys), _MANIFESTS):
            some = keys[first : first + _MANIFESTS]
            for key, content in zip(some, self._read(some), strict=True):
                if content:
                    yield _number(key), self._parse(key, content)

    def _read(self, keys: list[str]) -> list[bytes | None]:
        read = self.storage.read
        return stopping.interruptible(lambda: together(read, keys, _READERS))

    def new_attempt(self, shard: int, number: int) -> str:
        """A name that no other attempt has had or will have."""
        return f"{shard:05d}.{number}.{uuid.uuid4().hex[:8]}"

    def commit(self, shard: int, receipt: Manifest, planned: int) -> None:
        """Steps 3 to 5 for a finished attempt.

        Raises ValueError where the receipt does not account for every planned image, LeaseLost
        where another driver took over, and StorageError where the storage does not answer.
        """
        if receipt.images != planned:
            raise ValueError(
                f"shard {shard}: {receipt.ok} finished and {receipt.quarantined} quarantined "
                f"images do not add up to the {planned} planned ones"
            )
        content = manifests.dumps(receipt)
        self._check_staged(shard, receipt)
        self.check()
        crash.at("before-manifest")
        key, version = manifest_key(shard), None
        while self.storage.swap(key, content, version) is None:
            there = self.storage.get(key)
            other = self._parse(key, there.content) if there and there.content else None
            if other is not None and self.publish(shard, other):
                self.discard(other.attempt)
                break
            self.check()
            if other is not None:
                self._note_earlier(shard, other)
            version = there.version if there else None
        else:
            crash.at("after-manifest")
            if not self.publish(shard, receipt):
                raise StorageError(
                    self.storage.place,
                    f"files of shard {shard} vanished from {STAGING} while it was committed",
                    "start the same command again",
                )
        crash.at("before-staging-cleanup")
        self.discard(receipt.attempt)

    def _check_staged(self, shard: int, receipt: Manifest) -> None:
        """Raises StorageError where the driver does not see what the worker has staged."""
        if not isinstance(self.storage, LocalStorage):
            return  # An upload that was answered is there for everyone.
        prefix = staging(receipt.attempt)
        sizes = self.storage.sizes(prefix)
        for table, facts in receipt.files.items():
            key = f"{prefix}/{table}.parquet"
            if sizes.get(key) != facts.bytes:
                raise StorageError(
                    self.storage.locate(key),
                    f"a worker wrote it for shard {shard}, and it is not there for the driver",
                    "put the run on a disk that all machines share",
                )

    def publish(self, shard: int, manifest: Manifest) -> bool:
        """Give the files of a committed shard their final names; does nothing where done.

        False where the manifest is void: a file is neither staged nor published. Others of the
        shard may be published all the same; the next attempt at the shard replaces them.
        """

        def one(table: str) -> bool:
            self.check()
            final = part(table, shard)
            staged = f"{staging(manifest.attempt)}/{table}.parquet"
            size = manifest.files[table].bytes
            self._require_free(final, size)
            there = self.storage.publish(staged, final) or self._size(table, final) == size
            crash.at("mid-publish")
            return there

        tables = list(manifest.files)
        if isinstance(self.storage, LocalStorage):
            # A move takes no time, and after a missing file the others are left where they are.
            return all(map(one, tables))
        return all(stopping.interruptible(lambda: together(one, tables, _COPIES)))

    def _require_free(self, key: str, size: int) -> None:
        """Raises Refused where a file that is not of this run has the name of a part."""
        if isinstance(self.storage, LocalStorage):
            with suppress(FileNotFoundError):
                there = (self.storage.root / key).stat().st_size
                self._require_own({key: there}, {key: size})

    def _size(self, table: str, key: str) -> int | None:
        return self.storage.sizes(table).get(key)

    def discard(self, attempt: str) -> None:
        """Delete the staging folder of an attempt."""
        self.storage.delete(staging(attempt), _is_staged)

    def reopen(self, images: Mapping[int, Collection[str]]) -> None:
        """Give finished shards back to be made again by the next start. The caller holds the lease
        and has recovered the run.

        images: by shard, those whose files may have changed. Their old rows stay readable.
        """
        plan = self.plan()
        assert plan is not None
        # Rows of a large plan, of which only those that change are held apart from its text.
        contents: Any = plan.contents
        for shard, ids in images.items():
            marks = zip(plan.shards[shard], contents[shard], strict=True)
            contents[shard] = [None if i in ids else mark for i, mark in marks]
        self.replace_plan(plan)
        crash.at("after-open-marks")
        for shard in sorted(images):
            there = self.storage.get(manifest_key(shard))
            self.check()
            if there and there.content:
                manifest = self._parse(manifest_key(shard), there.content)
                self._note_earlier(shard, manifest)
                self._withdraw(shard, there)
            crash.at("mid-reopen")

    def holder(self) -> Holder | None:
        """The process that works on the run now: host and pid, as far as known; None: nobody."""
        return self._lease.holder()

    def recover(self) -> dict[int, Finished]:
        """Finish what a killed run left: publish committed shards, delete all other staging.

        Returns what is known of the committed shards. Raises Refused where a file that is not of
        this run has the name of a part.
        """
        sizes, found, alike = self.storage.sizes(), {}, Alike()
        parts, void = self._parts_of(sizes), {}
        for shard, manifest in self.each_manifest():
            known = self._bytes(shard, manifest)
            there = {key: parts.pop(key) for key in known if key in parts}
            done = there == known and all(
                f"{staging(manifest.attempt)}/{table}.parquet" not in sizes
                for table in manifest.files
            )
            if not done:
                self._require_own(there, known)
            if done or self.publish(shard, manifest):
                found[shard] = alike.finished(manifest)
            else:
                void[shard] = manifest
        self._require_own(parts, {})
        for shard, manifest in void.items():
            self._void(shard, manifest)
        self.clear_staging()
        return found

    def _parse(self, key: str, content: bytes) -> Manifest:
        try:
            return manifests.loads(content)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._damaged(key, error) from error

    def _damaged(self, key: str, error: object) -> StorageError:
        return StorageError(
            self.storage.locate(key),
            f"it is damaged ({error})",
            "delete it, and its shard is made again by the same command",
        )

    def _void(self, shard: int, manifest: Manifest) -> None:
        log.warning(
            "%s: shard %d was committed, but its files are gone; it is made again",
            self.storage.place,
            shard,
        )
        there = self.storage.get(manifest_key(shard))
        self.check()
        if there and there.content:
            if self._parse(manifest_key(shard), there.content) != manifest:
                raise self._changed(manifest_key(shard))
            self._withdraw(shard, there)

    def _withdraw(self, shard: int, there: Object) -> None:
        if not self.storage.withdraw(manifest_key(shard), there.version):
            raise self._changed(manifest_key(shard))

    def _changed(self, key: str) -> LeaseLost:
        return LeaseLost(
            self.storage.locate(key),
            "it was changed by another driver, which must have taken over this run; this one stops",
        )

    def clear_staging(self) -> None:
        """Delete all staging; only while no worker of this driver is running.

        Raises LeaseLost where it may be that of another driver.
        """
        self.check()
        self.storage.delete(STAGING, _is_staged)


def no_run(place: Storage) -> NoRun:
    """The error for a place that holds no run."""
    there = place.root.is_dir() if isinstance(place, LocalStorage) else bool(place.sizes())
    why = "it is not a run, because it has no plan.json" if there else "it does not exist"
    return NoRun(place.place, why, "give the folder or URL of a run")


def _number(key: str) -> int:
    return int(key.rpartition("/")[2].removesuffix(".json"))
