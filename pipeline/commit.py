"""How the tables of a shard become part of a run: all of them, once, or none.

A run folder holds `plan.json`, `_state/`, `_staging/` and one folder per table that contains
finished `part-00017.parquet` files only. The order of the writes is what makes a kill at any
moment harmless:

1. `plan.json` is created before any shard starts, so every later start agrees on which images form
   which shard. It changes only where new images are added: as shards behind the others, in one
   atomic step.
2. A worker writes complete tables to `_staging/{attempt}/`, a folder no other attempt uses. Until
   step 3 nothing outside it refers to them: a kill leaves rubbish that the next start deletes.
3. The driver creates `_state/shards/00017.json`, which names the attempt and the checksum of each
   file. Creation fails if the file exists, so exactly one attempt of a shard can win. This is the
   commit point; the manifest is complete and on disk when its name appears.
4. The driver moves the files to `{table}/part-00017.parquet`. Each move is atomic and may be
   repeated. A kill in between leaves a committed shard whose remaining files are still in its
   staging folder: the next start reads the manifest and finishes the moves (rolls forward).
5. The staging folder is removed, last, because step 4 may still need it.

Committing before publishing means that readers may briefly miss tables of a committed shard but
never see rows of a shard that could still be computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from dhr_batch.pipeline import plan_file
from dhr_batch.pipeline.schemas import TABLES


class Refused(Exception):
    """The run cannot go on as asked; the message says why and what to do. Exit code 2."""


def create(path: Path, content: bytes) -> bool:
    """Write a file completely or not at all; False where the name is already taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with temporary.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_folder(path.parent)
    return True


def replace(path: Path, content: bytes) -> None:
    """Write a file that readers see either old or new."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunFolder:
    """The protocol above on a local folder. One driver at a time (`lock`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = root / "_staging"
        self._shards = root / "_state" / "shards"
        self._lease: int | None = None

    def lock(self) -> None:
        """Take the run for this process. The kernel frees it when the process ends.

        Raises Refused where another process holds it.
        """
        path = self.root / "_state" / "lease"
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise Refused(
                f"{self.root} is in use by {holder}: wait for it to end, stop it, or choose "
                "another folder with --out"
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {os.uname().nodename}".encode())
        self._lease = handle

    def unlock(self) -> None:
        if self._lease is not None:
            os.close(self._lease)
            self._lease = None

    def plan(self) -> dict[str, Any] | None:
        """The plan this folder was started with, or None for a new folder."""
        path = self.root / "plan.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_plan(self, plan: dict[str, Any]) -> None:
        if not create(self.root / "plan.json", plan_file.dumps(plan).encode()):
            raise Refused(f"{self.root / 'plan.json'} appeared while starting: start again")

    def replace_plan(self, plan: dict[str, Any]) -> None:
        """Put a plan with more shards in place of the stored one. The caller holds the lease."""
        replace(self.root / "plan.json", plan_file.dumps(plan).encode())

    def clear(self) -> None:
        """Delete the run but not the lease, which the caller holds.

        The plan goes last: killed in between, the folder is a run whose shards are to be made.
        """
        for name in ("_state/shards", "_staging", *TABLES, "report"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name in ("README.md", "plan.json"):
            (self.root / name).unlink(missing_ok=True)

    def committed(self) -> dict[int, dict[str, Any]]:
        """Manifests of the committed shards by shard number."""
        paths = sorted(self._shards.glob("*.json")) if self._shards.is_dir() else []
        return {int(p.stem): json.loads(p.read_text(encoding="utf-8")) for p in paths}

    def new_attempt(self, shard: int, number: int) -> str:
        """A name that no other attempt has had or will have."""
        return f"{shard:05d}.{number}.{uuid.uuid4().hex[:8]}"

    def commit(self, shard: int, receipt: dict[str, Any], planned: int) -> None:
        """Steps 3 to 5 for a finished attempt.

        Raises ValueError where the receipt does not account for every planned image.
        """
        if receipt["ok"] + receipt["quarantined"] != planned:
            raise ValueError(
                f"shard {shard}: {receipt['ok']} finished and {receipt['quarantined']} quarantined "
                f"images do not add up to the {planned} planned ones"
            )
        text = json.dumps(receipt, ensure_ascii=False, indent=1)
        if create(self._shards / f"{shard:05d}.json", text.encode()):
            self.publish(shard, receipt)
        self.discard(receipt["attempt"])

    def publish(self, shard: int, manifest: dict[str, Any]) -> None:
        """Move the files of a committed shard to their final names; does nothing where done.

        Raises OSError where a file is neither staged nor published.
        """
        for table in manifest["files"]:
            staged = self.staging / manifest["attempt"] / f"{table}.parquet"
            final = self.root / table / f"part-{shard:05d}.parquet"
            if staged.exists():
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged, final)
                _sync_folder(final.parent)
            elif not final.exists():
                raise OSError(f"{final} is committed, yet neither it nor {staged} exists")

    def discard(self, attempt: str) -> None:
        """Delete the staging folder of an attempt."""
        shutil.rmtree(self.staging / attempt, ignore_errors=True)

    def recover(self) -> dict[int, dict[str, Any]]:
        """Finish what a killed run left: publish committed shards, delete all other staging.

        Returns the manifests of the committed shards.
        """
        manifests = self.committed()
        for shard, manifest in manifests.items():
            self.publish(shard, manifest)
        self.clear_staging()
        return manifests

    def clear_staging(self) -> None:
        """Delete all staging; only while no worker of this driver is running."""
        shutil.rmtree(self.staging, ignore_errors=True)
