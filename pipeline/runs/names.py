"""Names of the files in a run folder."""

from __future__ import annotations

STAGING = "_staging"
SHARDS = "_state/shards"
PLAN = "plan.json"


def staging(attempt: str) -> str:
    """Where the files of an attempt wait to be committed."""
    return f"{STAGING}/{attempt}"


def manifest_key(shard: int) -> str:
    """Where the manifest of a committed shard lies."""
    return f"{SHARDS}/{shard:05d}.json"


def part(table: str, shard: int) -> str:
    """Where the rows of a shard are published."""
    return f"{table}/part-{shard:05d}.parquet"
