"""Attempts at shards, and the files that they write to a run."""

from __future__ import annotations

from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import staging
from dhr_batch.pipeline.runs.records.manifests import FileFacts, Manifest
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.storage.base import Storage

PLAN = StoredPlan(schema=2, shards=[["a", "b", "c"]], contents=[[1, 2, 3]])


def attempt(run: RunFolder, shard: int, content: bytes = b"rows") -> Manifest:
    name = run.new_attempt(shard, 1)
    tables = ("images", "latents")
    with run.storage.stage(staging(name)) as folder:
        for table in tables:
            (folder / f"{table}.parquet").write_bytes(content)
    facts = FileFacts(bytes=len(content))
    return Manifest(name, dict.fromkeys(tables, facts), ok=2, quarantined=1)


def files(storage: Storage) -> dict[str, bytes | None]:
    return {key: storage.read(key) for key in storage.sizes() if key.endswith(".parquet")}
