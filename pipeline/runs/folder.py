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
the shard, and the other attempt is discarded. A late manifest of a run that `--fresh` has deleted
in the meantime is of another run: it is never replaced, but ends the driver with its name.

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

Finished shards can be reopened (`pipeline/runs/reopening.py`): their manifests are withdrawn, the
reverse of step 3, and the next start computes them again. All files of a run can be deleted
(`pipeline/runs/deletion.py`).

A power loss in a folder is like a kill: every step is flushed to the disk before the next one
begins, new folders and deletions included. Changes of names that were not flushed may survive in
any combination (`tests/faults/test_power_loss.py`). Files that vouch for others contain a checksum
of themselves (`pipeline/sealed.py`), and whoever reads a table compares it with the manifests
(`pipeline/runs/parts.py`).

Only files of the run are overwritten or deleted (`pipeline/runs/own_parts.py`).

Each table is one upload or copy. S3 limits copies to 5 GB, so shards must be smaller. Uploads of a
killed worker may leave invisible parts in a bucket; a lifecycle rule that aborts incomplete
multipart uploads removes them.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from pathlib import Path

from dhr_batch.pipeline import crash, stopping
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.runs.lease import Holder, LeaseLost, lease
from dhr_batch.pipeline.runs.names import (
    PLAN,
    STAGING,
    manifest_key,
    part,
    staging,
)
from dhr_batch.pipeline.runs.own_parts import OwnParts, is_staged, parts_among
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.records import manifests, plan_file
from dhr_batch.pipeline.runs.records.manifests import Finished, Manifest, Summaries
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.stopping import Interrupted
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.pipeline.threads import together

# The number of tables of a shard copied in parallel: all of them.
_COPIES = 8


log = logging.getLogger(__name__)


class RunFolder(RunRecords):
    """A run, with the commit protocol above.

    Only one driver at a time may write (see `lock`).

    Args:
        place: The folder or URL of the run.
        lease_timeout: The time in seconds after which a driver on another machine that shows no
            sign of life may be replaced.

    Attributes:
        own: The parts of tables that belong to the run.
    """

    def __init__(self, place: str | Path | Storage, lease_timeout: float = 60.0) -> None:
        super().__init__(place)
        self._lease = lease(self.storage, lease_timeout)
        self.own = OwnParts(self.storage)

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
        self._identity = plan.run or uuid.uuid4().hex
        if not self.storage.create(PLAN, plan_file.dumps(replace(plan, run=self._identity))):
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
        content = plan_file.dumps(replace(plan, run=self.identity() or ""))
        self.check()
        self._plan_version = self.storage.swap(PLAN, content, self._plan_version)
        if self._plan_version is None:
            raise self._changed(PLAN)

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
        content = manifests.dumps(replace(receipt, run=self.identity() or "", shard=shard))
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
                self.own.note_earlier(shard, other)
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
            self.own.require_free(final, size)
            published = self.storage.publish(staged, final) or self._size(table, final) == size
            crash.at("mid-publish")
            return published

        tables = list(manifest.files)
        if isinstance(self.storage, LocalStorage):
            # Moves take no time, so they come one by one. The first missing file ends the loop, and
            # the remaining files stay where they are.
            return all(map(publish_table, tables))
        return all(stopping.interruptible(lambda: together(publish_table, tables, _COPIES)))

    def _size(self, table: str, key: str) -> int | None:
        return self.storage.sizes(table).get(key)

    def discard(self, attempt: str) -> None:
        """Delete the staging folder of an attempt."""
        self.storage.delete(staging(attempt), is_staged)

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
        parts, void = parts_among(sizes), {}
        for shard, manifest in self.each_manifest():
            named = self.own.sizes(shard, manifest)
            published = {key: parts.pop(key) for key in named if key in parts}
            done = published == named and all(
                f"{staging(manifest.attempt)}/{table}.parquet" not in sizes
                for table in manifest.files
            )
            if not done:
                self.own.require(published, named)
            if done or self.publish(shard, manifest):
                finished[shard] = summaries.finished(manifest)
            else:
                void[shard] = manifest
        self.own.require(parts, {})
        for shard, manifest in void.items():
            log.warning(
                "%s: shard %d was committed, but its files are missing; it is computed again",
                self.storage.place,
                shard,
            )
            self.withdraw(shard, manifest)
        self.clear_staging()
        return finished

    def withdraw(self, shard: int, manifest: Manifest | None = None) -> None:
        """Withdraw the manifest of a shard, if there is one. The caller must hold the lease.

        Args:
            shard: The number of the shard.
            manifest: The manifest that is expected; by default any.

        Raises:
            LeaseLost: If another driver has changed the manifest, or has taken over the run.
        """
        key = manifest_key(shard)
        stored = self.storage.get(key)
        self.check()
        if stored and stored.content:
            found = self._parse(key, stored.content)
            if manifest not in (None, found):
                raise self._changed(key)
            # Its files may be published. Without it, nothing else shows that the run wrote them.
            self.own.note_earlier(shard, found)
            if not self.storage.withdraw(key, stored.version):
                raise self._changed(key)

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
        self.storage.delete(STAGING, is_staged)
