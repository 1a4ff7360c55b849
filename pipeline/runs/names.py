"""Names of the files in a run folder."""

from __future__ import annotations

import re

STAGING = "_staging"
SHARDS = "_state/shards"
EARLIER = "_state/earlier"
PLAN = "plan.json"
# Numbers have five digits, or more from shard 100,000 on.
_RECORD = re.compile(rf"({SHARDS}|{EARLIER})/\d{{5,}}\.json")


def staging(attempt: str) -> str:
    """Return the folder in which the files of an attempt wait to be committed."""
    return f"{STAGING}/{attempt}"


def manifest_key(shard: int) -> str:
    """Return the key of the manifest of a shard."""
    return f"{SHARDS}/{shard:05d}.json"


def earlier_key(shard: int) -> str:
    """Return the key of the record of what a reopened shard had before."""
    return f"{EARLIER}/{shard:05d}.json"


def is_record(key: str) -> bool:
    """Whether a key is that of a manifest or of a record of a reopened shard."""
    return _RECORD.fullmatch(key) is not None


def shard_of(key: str) -> int:
    """Return the shard of a part of a table, or of a record.

    >>> shard_of(part("images", 17)), shard_of(manifest_key(100_000))
    (17, 100000)
    """
    return int(key.rpartition("/")[2].removeprefix("part-").partition(".")[0])


def part(table: str, shard: int) -> str:
    """Return the key under which the rows of a shard in a table are published."""
    return f"{table}/part-{shard:05d}.parquet"
