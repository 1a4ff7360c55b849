"""Attempts at shards, and what they leave in a run."""

from __future__ import annotations

from typing import Any

from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import staging
from dhr_batch.pipeline.storage.base import Storage

PLAN: dict[str, Any] = {"schema": 2, "shards": [["a", "b", "c"]], "contents": [[1, 2, 3]]}


def attempt(run: RunFolder, shard: int, content: bytes = b"rows") -> dict[str, Any]:
    name = run.new_attempt(shard, 1)
    tables = ("images", "latents")
    with run.storage.stage(staging(name)) as folder:
        for table in tables:
            (folder / f"{table}.parquet").write_bytes(content)
    files = {table: {"bytes": len(content)} for table in tables}
    return {"attempt": name, "files": files, "ok": 2, "quarantined": 1}


def files(storage: Storage) -> dict[str, bytes | None]:
    return {key: storage.read(key) for key in storage.sizes() if key.endswith(".parquet")}
