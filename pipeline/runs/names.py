"""Names of the files in a run folder."""

from __future__ import annotations

STAGING = "_staging"
SHARDS = "_state/shards"
PLAN = "plan.json"


def staging(attempt: str) -> str:
    """Return the folder in which the files of an attempt wait to be committed."""
    return f"{STAGING}/{attempt}"


def manifest_key(shard: int) -> str:
    """Return the key of the manifest of a shard."""
    return f"{SHARDS}/{shard:05d}.json"


def shard_of(key: str) -> int:
    """Return the shard of a part of a table."""
    return int(key.rpartition("part-")[2].removesuffix(".parquet"))


def part(table: str, shard: int) -> str:
    """Return the key under which the rows of a shard in a table are published."""
    return f"{table}/part-{shard:05d}.parquet"
