"""How the tables of a shard become part of a run: either all of them, exactly once, or none.

A run is a folder or a prefix of an object store. It contains `plan.json`, `_state/`, `_staging/`,
and one folder per table that contains only finished files, such as `part-00017.parquet`. A process
may be killed at any moment. The order of the writes makes this harmless:

1. `plan.json` is created before any shard is computed, so that all later starts agree on the images
   of each shard. It changes only when new images are added. They form additional shards behind the
   existing ones, and the file is replaced in one atomic step.
2. A worker writes complete tables to local scratch space, reads their footers back, and transfers
   the files to `_staging/{attempt}/`, which no other attempt uses. In a local folder, this staging
   folder is itself the scratch space, and fsync makes the files durable. In an object store, each
   file is one upload, which is signed with its checksum and becomes visible as a whole or not at
   all. Nothing refers to these files until step 3. If the process is killed before, they are
   garbage that the next start deletes.
3. The driver creates `_state/shards/00017.json`, the manifest of the shard. It names the attempt,
   and the size and checksum of each file. Creating it fails if the name exists (by a hard link in a
   folder, by `If-None-Match` in an object store), so that exactly one attempt at a shard can
   succeed. This is the commit point. The manifest is complete and durable when its name appears.
4. The driver publishes the files as `{table}/part-00017.parquet`: it moves them in a folder, and
   copies them on the server in an object store, all tables at the same time. Each of these
   operations is atomic, can be repeated, can come in any order, and does not write the table again.
   If the driver is killed in between, some files of a committed shard are only staged. The next
   start reads the manifest and publishes them (it rolls forward).
5. The staging folder is removed last, because step 4 may still need it.

As a shard is committed before it is published, readers may briefly miss tables of a committed
shard. They never see rows of a shard that could still be computed again.

Only the driver that holds the lease (`pipeline/runs/lease.py`) commits. It checks the lease before
step 3 and before each file of step 4. Workers of a killed driver write to staging folders that
nobody will ever commit. The lease in an object store can be lost between the check and the write,
when the machine freezes in between. By then the new driver has deleted the staged files that the
late manifest names. Therefore a manifest is valid only if each of its files is staged or published
with the size that the manifest gives. Otherwise it is void, and the driver that holds the lease
replaces it with its own. A late manifest whose files all exist is as good as any other: it finishes
the shard, and the other attempt is discarded.

A write that changes an existing file takes effect only if the file is still as the writer has read
it: `plan.json` and manifests are replaced and withdrawn on the condition that their etag is the
same. A driver that was frozen before such a write finds the content of the new driver instead,
changes nothing and stops. Not every store supports deletion on a condition. There a manifest is
withdrawn by making it empty, and readers treat an empty manifest as absent. In a folder, the lease
is a lock that even a frozen process still holds, so nobody can take over before the process has
ended; the lock and the identity of the lock file are checked right before the change. Deletions
remain as a risk: a frozen driver may delete staged files of the new driver. The commit of the new
driver then stops before or in step 4, and the next start computes that shard again. A frozen
`--fresh`, which deletes all files of the run, is the one case that can destroy finished shards of a
new driver. It checks the lease before it deletes the files of each table.

Finished shards can be reopened, so that they are computed again (`reopen`, for `quarantine retry`).
The driver holds the lease and first rolls forward what a killed process has left. Then it replaces
`plan.json` by one that allows different contents of the chosen images. After that it withdraws the
manifest of each shard, the reverse of step 3. If it is killed before it withdraws a manifest, the
shard is still finished with its old rows; if it is killed afterwards, the shard is to be computed.
The same call then continues with the remaining shards. The published files stay as they are, so
readers see the old rows until step 4 of the new attempt replaces them, table by table. Before a
manifest is withdrawn, the sizes of its files are recorded in `_state/earlier/00017.json`, which
shows that these files belong to the run. One gap remains, which only `dhr-batch verify` detects, as
it compares checksums: a late manifest in an object store, as described above, is accepted together
with the old files of a reopened shard if these happen to have the sizes that it gives.

A power loss in a folder is like a kill: every step is flushed to the disk before the next one
begins, new folders and deletions included. Changes of names that were not flushed may survive in
any combination (`tests/faults/test_power_loss.py`). Files that vouch for others contain a checksum
of themselves (`pipeline/sealed.py`), and whoever reads a table compares it with the manifests
(`pipeline/runs/parts.py`).

Only files of the run are overwritten or deleted (`pipeline/storage/ownership.py`): parts of tables
whose size a manifest gives, attempts in staging, which are recognized by their unguessable names,
and files that the marker of the run lists. A start is refused if another file has the name of a
part. In a folder, this is checked again before each file of step 4; in an object store, the check
would cost a request per table.

Each table is one upload or copy. S3 limits copies to 5 GB, so shards must be smaller. Uploads of a
killed worker may leave invisible parts in a bucket; a lifecycle rule that aborts incomplete
multipart uploads removes them.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dhr_batch.pipeline import crash, sealed, stopping
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.runs import manifests, plan_file, status_file
from dhr_batch.pipeline.runs.lease import Holder, LeaseLost, lease
from dhr_batch.pipeline.runs.manifests import Finished, Manifest, Summaries
from dhr_batch.pipeline.runs.names import (
    PLAN,
    STAGING,
    earlier_key,
    is_record,
    manifest_key,
    part,
    shard_of,
    staging,
)
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.status_file import STATUS
from dhr_batch.pipeline.runs.stored_plan import StoredPlan
from dhr_batch.pipeline.stopping import Interrupted
from dhr_batch.pipeline.storage.base import Object, Storage, is_part
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.storage.ownership import RUN, Owned, listed
from dhr_batch.pipeline.tables.schemas import TABLES
from dhr_batch.pipeline.threads import together

# The number of tables of a shard copied in parallel: all of them.
_COPIES = 8

_STAGED = re.compile(rf"{STAGING}/\d{{5,}}\.\d+\.\w+/({'|'.join(TABLES)})\.parquet")
# Files that remain when a run is deleted: the lease, which is held, and the logs, which users read.
_KEPT = re.compile(r"_state/(lease|clock|owner\.json|logs/worker-.*\.log)")

log = logging.getLogger(__name__)


def _is_staged(key: str) -> bool:
    """Whether a file belongs to an attempt, whose unguessable name a worker chose."""
    return _STAGED.fullmatch(key) is not None


class RunFolder(RunRecords):
    """A run, with the commit protocol above.

    Only one driver at a time may write (see `lock`).

    Args:
        place: The folder or URL of the run.
        lease_timeout: The time in seconds after which a driver on another machine that shows no
            sign of life may be replaced.
    """

    def __init__(self, place: str | Path | Storage, lease_timeout: float = 60.0) -> None:
        super().__init__(place)
        self._lease = lease(self.storage, lease_timeout)

    def lock(self) -> None:
        """Acquire the lease of the run.

        Raises:
            Refused: If another process holds it.
        """
        self._lease.take()

    def check(self) -> None:
        """Check that this process holds the lease.

        Raises:
            LeaseLost: If it may no longer commit.
        """
        self._lease.check()

    def unlock(self) -> None:
        """Release the lease. If the store does not answer, the lease expires after its timeout."""
        try:
            self._lease.release()
        except (StorageError, Interrupted) as error:
            log.warning("the lease of the run was not released: %s", error or "interrupted")

    def write_plan(self, plan: StoredPlan) -> None:
        """Create the plan of a new run.

        Raises:
            Refused: If another process has created it in the meantime.
        """
        if not self.storage.create(PLAN, plan_file.dumps(plan)):
            raise Refused(
                self.storage.locate(PLAN),
                "another process created it while this one was starting",
                "start again",
            )
        crash.at("after-plan")

    def replace_plan(self, plan: StoredPlan) -> None:
        """Replace the plan that `plan` returned last. The caller must hold the lease.

        Raises:
            LeaseLost: If another driver has changed the plan in the meantime.
        """
        content = plan_file.dumps(plan)
        self.check()
        self._plan_version = self.storage.swap(PLAN, content, self._plan_version)
        if self._plan_version is None:
            raise self._changed(PLAN)

    def clear(self) -> list[str]:
        """Delete the files of the run, except the logs and the lease, which the caller must hold.

        The manifests are deleted after the parts that they name, and the plan last. If the process
        is killed in between, the folder is a run whose shards are to be computed.

        Returns:
            The remaining files, which do not belong to the run.

        Raises:
            Refused: If the next run would overwrite one of these files. Nothing is deleted then.
        """
        owned = Owned(self.storage, RUN)
        sizes = self.storage.sizes()
        named: dict[str, int] = {}
        plan = self.plan()
        if plan is not None and {"schema", "shards"} & set(plan.missing):
            place = self.storage.locate(PLAN)
            raise Refused(place, "it is not the plan of a run, but another file", "move it away")
        for shard, manifest in self.each_manifest():
            named |= self._bytes(shard, manifest)
        parts = self._parts_of(sizes)
        self._require_own(parts, named)
        foreign = owned.foreign(owned.files)
        rest = [key for key in owned.files if key not in foreign]
        with suppress(status_file.Damaged):
            status_file.read_status(self.storage)
            rest.append(STATUS)
        groups = [[key for key in parts if key.startswith(f"{table}/")] for table in TABLES]
        groups += [list(filter(kind, sizes)) for kind in (_is_staged, is_record)]
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
        """Select the files that have the name of a part of a table."""
        return {
            key: size
            for key, size in sizes.items()
            if is_part(key) and key.partition("/")[0] in TABLES
        }

    def _bytes(self, shard: int, manifest: Manifest) -> dict[str, int]:
        """Return the sizes in bytes of the parts that a manifest names.

        Raises:
            StorageError: If the manifest is damaged.
        """
        if not manifest.attempt:
            raise self._damaged(manifest_key(shard), "it names no attempt")
        return {part(table, shard): facts.bytes for table, facts in manifest.files.items()}

    def _require_own(self, parts: Mapping[str, int], named: Mapping[str, int]) -> None:
        """Check that parts belong to this run.

        Args:
            parts: The size in bytes of each part.
            named: The sizes of the parts that manifests name.

        Raises:
            Refused: If a part does not belong to this run.
        """
        earlier: dict[int, dict[str, list[int]]] = {}
        foreign = {}
        for key, size in parts.items():
            if named.get(key) != size:
                shard = shard_of(key)
                if shard not in earlier:
                    earlier[shard] = self._earlier(shard)
                if size not in earlier[shard].get(key, ()):
                    foreign[key] = shard
        if foreign and Owned(self.storage, RUN).unlisted:
            # Older versions kept no list of files, so any part of a planned shard may be their own.
            planned = len(plan_file.loads(self.storage.read(PLAN) or b"{}").shards)
            foreign = {key: shard for key, shard in foreign.items() if shard >= planned}
        if foreign:
            raise Refused(
                listed([self.storage.locate(key) for key in foreign]),
                "no manifest of the run names a file of this size, so the run did not write it, or "
                "it has been changed; it is not overwritten",
                "move it away or delete it, then give the same command again",
            )

    def _earlier(self, shard: int) -> dict[str, list[int]]:
        """Return the possible sizes in bytes that each file of a reopened shard had before."""
        key = earlier_key(shard)
        try:
            return sealed.loads(self.storage.read(key) or b"{}")
        except ValueError as error:
            raise self._damaged(key, error) from error

    def _note_earlier(self, shard: int, manifest: Manifest) -> None:
        """Record the sizes of the published files, to recognize them without their manifest."""
        earlier = self._earlier(shard)
        for key, size in self._bytes(shard, manifest).items():
            earlier[key] = sorted({size, *earlier.get(key, ())})
        self.storage.replace(earlier_key(shard), sealed.dumps(earlier))

    def new_attempt(self, shard: int, number: int) -> str:
        """Return a new name for an attempt, which no other attempt has."""
        return f"{shard:05d}.{number}.{uuid.uuid4().hex[:8]}"

    def commit(self, shard: int, receipt: Manifest, planned: int) -> None:
        """Commit a finished attempt: steps 3 to 5 of the protocol of this module.

        Args:
            shard: The number of the shard.
            receipt: The manifest of the attempt, as the worker returned it.
            planned: The number of images of the shard.

        Raises:
            ValueError: If the receipt does not account for every planned image.
            LeaseLost: If another driver has taken over the run.
            StorageError: If the storage does not answer.
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
            # Another attempt was committed first. It is kept if all of its files exist.
            existing = self.storage.get(key)
            other = self._parse(key, existing.content) if existing and existing.content else None
            if other is not None and self.publish(shard, other):
                self.discard(other.attempt)
                break
            self.check()
            if other is not None:
                self._note_earlier(shard, other)
            version = existing.version if existing else None
        else:
            crash.at("after-manifest")
            if not self.publish(shard, receipt):
                raise StorageError(
                    self.storage.place,
                    f"files of shard {shard} were deleted from {STAGING} while it was committed",
                    "start the same command again",
                )
        crash.at("before-staging-cleanup")
        self.discard(receipt.attempt)

    def _check_staged(self, shard: int, receipt: Manifest) -> None:
        """Check that the driver sees the files that the worker has staged.

        Raises:
            StorageError: If a file is missing.
        """
        if not isinstance(self.storage, LocalStorage):
            return  # Everyone sees a completed upload.
        prefix = staging(receipt.attempt)
        sizes = self.storage.sizes(prefix)
        for table, facts in receipt.files.items():
            key = f"{prefix}/{table}.parquet"
            if sizes.get(key) != facts.bytes:
                raise StorageError(
                    self.storage.locate(key),
                    f"a worker wrote it for shard {shard}, but the driver does not see it",
                    "put the run on a disk that all machines share",
                )

    def publish(self, shard: int, manifest: Manifest) -> bool:
        """Publish the files of a committed shard. Files that are published already are left alone.

        Returns:
            False if the manifest is void, as a file is neither staged nor published. Other files
            of the shard may be published nevertheless; the next attempt at it replaces them.

        Raises:
            LeaseLost: If another driver has taken over the run.
            Refused: If a file that does not belong to the run has the name of a part.
        """

        def publish_table(table: str) -> bool:
            self.check()
            final = part(table, shard)
            staged = f"{staging(manifest.attempt)}/{table}.parquet"
            size = manifest.files[table].bytes
            self._require_free(final, size)
            published = self.storage.publish(staged, final) or self._size(table, final) == size
            crash.at("mid-publish")
            return published

        tables = list(manifest.files)
        if isinstance(self.storage, LocalStorage):
            # Moves take no time, so they come one by one. The first missing file ends the loop, and
            # the remaining files stay where they are.
            return all(map(publish_table, tables))
        return all(stopping.interruptible(lambda: together(publish_table, tables, _COPIES)))

    def _require_free(self, key: str, size: int) -> None:
        """Check that no file which does not belong to the run has the name of a part.

        Raises:
            Refused: If there is such a file.
        """
        if isinstance(self.storage, LocalStorage):
            with suppress(FileNotFoundError):
                found = (self.storage.root / key).stat().st_size
                self._require_own({key: found}, {key: size})

    def _size(self, table: str, key: str) -> int | None:
        return self.storage.sizes(table).get(key)

    def discard(self, attempt: str) -> None:
        """Delete the staging folder of an attempt."""
        self.storage.delete(staging(attempt), _is_staged)

    def reopen(self, images: Mapping[int, Collection[str]]) -> None:
        """Reopen finished shards, so that the next start computes them again.

        The old rows can be read until then. The caller must hold the lease and must have called
        `recover`.

        Args:
            images: For each shard the images whose files may be different at the next start.

        Raises:
            LeaseLost: If another driver has taken over the run.
        """
        plan = self.plan()
        assert plan is not None
        # The lists may be `plan_file.Rows`, which keep only the changed rows apart from the text.
        contents: Any = plan.contents
        for shard, ids in images.items():
            marks = zip(plan.shards[shard], contents[shard], strict=True)
            contents[shard] = [None if i in ids else mark for i, mark in marks]
        self.replace_plan(plan)
        crash.at("after-open-marks")
        for shard in sorted(images):
            stored = self.storage.get(manifest_key(shard))
            self.check()
            if stored and stored.content:
                manifest = self._parse(manifest_key(shard), stored.content)
                self._note_earlier(shard, manifest)
                self._withdraw(shard, stored)
            crash.at("mid-reopen")

    def holder(self) -> Holder | None:
        """Return the process that is working on the run, or None if there is none.

        Its host and pid are None if they are unknown.
        """
        return self._lease.holder()

    def recover(self) -> dict[int, Finished]:
        """Finish what a killed process has left: publish committed shards, delete other staging.

        Returns:
            The summaries of the committed shards, by shard number.

        Raises:
            Refused: If a file that does not belong to the run has the name of a part.
        """
        sizes, finished, summaries = self.storage.sizes(), {}, Summaries()
        parts, void = self._parts_of(sizes), {}
        for shard, manifest in self.each_manifest():
            named = self._bytes(shard, manifest)
            published = {key: parts.pop(key) for key in named if key in parts}
            done = published == named and all(
                f"{staging(manifest.attempt)}/{table}.parquet" not in sizes
                for table in manifest.files
            )
            if not done:
                self._require_own(published, named)
            if done or self.publish(shard, manifest):
                finished[shard] = summaries.finished(manifest)
            else:
                void[shard] = manifest
        self._require_own(parts, {})
        for shard, manifest in void.items():
            self._void(shard, manifest)
        self.clear_staging()
        return finished

    def _void(self, shard: int, manifest: Manifest) -> None:
        """Withdraw a void manifest."""
        log.warning(
            "%s: shard %d was committed, but its files are missing; it is computed again",
            self.storage.place,
            shard,
        )
        stored = self.storage.get(manifest_key(shard))
        self.check()
        if stored and stored.content:
            if self._parse(manifest_key(shard), stored.content) != manifest:
                raise self._changed(manifest_key(shard))
            # Some of its files may be published. Without the manifest, nothing else shows that the
            # run wrote them.
            self._note_earlier(shard, manifest)
            self._withdraw(shard, stored)

    def _withdraw(self, shard: int, stored: Object) -> None:
        if not self.storage.withdraw(manifest_key(shard), stored.version):
            raise self._changed(manifest_key(shard))

    def _changed(self, key: str) -> LeaseLost:
        return LeaseLost(
            self.storage.locate(key),
            "another driver has changed it, so it has taken over this run; this driver stops",
        )

    def clear_staging(self) -> None:
        """Delete all staged files. No worker of this driver may be running.

        Raises:
            LeaseLost: If another driver has taken over, as the files may be its own.
        """
        self.check()
        self.storage.delete(STAGING, _is_staged)
