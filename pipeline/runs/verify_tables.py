"""Whether the tables of one shard are what its manifest says, with every planned image once.

Reads one file at a time, and of its rows only what tells them apart.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from dhr_batch.pipeline.files import sha256
from dhr_batch.pipeline.runs.manifests import FileFacts, Manifest
from dhr_batch.pipeline.runs.names import manifest_key, part
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.tables.schemas import SCHEMA_VERSION

AGAIN = "start the same command again: it makes the shard again"
_DELETE = f"delete it, then {AGAIN}"
# What tells the rows of one image apart. Edits are left to the settings that name them.
_ONCE: dict[str, tuple[str, ...]] = {
    "latents": (),
    "quarantine": (),
    "images": ("kind", "edit_name", "edit_strength"),
    "masks": ("kind",),
    "deltas": ("tensor",),
    "features": ("kind", "extractor"),
}
_NAMED = 5


class Problem(BaseModel):
    """What is wrong with a file, and what to do."""

    file: str
    problem: str
    way_out: str


def check(
    storage: Storage,
    shard: int,
    planned: Sequence[str],
    manifest: Manifest,
    sizes: dict[str, int],
) -> Iterator[Problem]:
    """All that is wrong with the published files of a shard.

    planned: its image ids. sizes: bytes by key, as listed. Raises StorageError where a file cannot
    be read now.
    """
    tables: dict[str, pa.Table] = {}
    for table, facts in manifest.files.items():
        key = part(table, shard)
        # A listing may miss what was moved meanwhile.
        size = sizes[key] if key in sizes else storage.sizes(table).get(key)
        if size is None:
            yield Problem(file=key, problem="missing", way_out=AGAIN)
            continue
        with storage.local(key) as path:
            problems = list(_bytes(path, facts, size, key))
            yield from problems
            rows = yield from _rows(path, table, key, facts.rows, bool(problems))
        if rows is not None:
            tables[table] = rows
    yield from _accounts(shard, planned, manifest, tables)


def _bytes(path: Path, facts: FileFacts, size: int, key: str) -> Iterator[Problem]:
    if size != facts.bytes:
        problem = f"{size} bytes, {facts.bytes} by its manifest"
        yield Problem(file=key, problem=problem, way_out=AGAIN)
    elif (found := sha256(path)) != facts.sha256:
        problem = f"sha256 {found[:16]}, {facts.sha256[:16]} by its manifest"
        yield Problem(file=key, problem=problem, way_out=_DELETE)


def _rows(
    path: Path, table: str, key: str, rows: int, damaged: bool
) -> Generator[Problem, None, pa.Table | None]:
    """Problems of footer and schema; returns the columns that tell rows apart, None if unreadable.

    damaged: that the file is another one was said already.
    """
    try:
        file = pq.ParquetFile(path)
        columns = ["image_id", "shard", *_ONCE.get(table, ())]
        found = file.read(columns=columns)
        missing = set(columns) - set(found.column_names)
        about = json.loads((file.schema_arrow.metadata or {}).get(b"dhr_batch", b"{}"))
    except (OSError, ValueError, pa.ArrowException) as error:
        if not damaged:
            problem = f"cannot be read as Parquet: {error}"
            yield Problem(file=key, problem=problem, way_out=_DELETE)
        return None
    if file.metadata.num_rows != rows:
        problem = f"{file.metadata.num_rows} rows, {rows} by its manifest"
        yield Problem(file=key, problem=problem, way_out=_DELETE)
    if missing:
        problem = f"without the columns {first_names(sorted(missing))}"
        yield Problem(file=key, problem=problem, way_out=_DELETE)
        return None
    # Older versions have fewer columns and can still be read.
    known = about.get("schema_version") in range(1, SCHEMA_VERSION + 1)
    if about.get("table") != table or not known or b"huggingface" not in file.schema_arrow.metadata:
        problem = "schema metadata (dhr_batch, huggingface) is missing or of another table"
        yield Problem(file=key, problem=problem, way_out=_DELETE)
    return found


def _accounts(
    shard: int, planned: Sequence[str], manifest: Manifest, tables: dict[str, pa.Table]
) -> Iterator[Problem]:
    """Every planned image in the tables or in quarantine, once."""

    def wrong(table: str, problem: str) -> Problem:
        key = part(table, shard)
        return Problem(file=key, problem=problem, way_out=_DELETE)

    known = set(planned)
    ids = {table: rows["image_id"].to_pylist() for table, rows in tables.items()}
    for table, rows in tables.items():
        if unknown := sorted(set(ids[table]) - known):
            yield wrong(table, f"images that the shard does not have: {first_names(unknown)}")
        if set(rows["shard"].to_pylist()) - {shard}:
            yield wrong(table, f"rows of another shard than {shard}")
        if twice := _twice(table, rows):
            yield wrong(table, f"rows that are there twice, of: {first_names(twice)}")
    if not {"latents", "images", "quarantine"} <= tables.keys():
        return
    failed, done = set(ids["quarantine"]), set(ids["latents"]) | set(ids["images"])
    for table in sorted(tables.keys() - {"quarantine"}):
        if both := sorted(failed & set(ids[table])):
            yield wrong(table, f"images that are in quarantine as well: {first_names(both)}")
    for table in ("latents", "images"):
        if lacking := sorted(done - set(ids[table])):
            yield wrong(table, f"no row of: {first_names(lacking)}")
    if lost := [image_id for image_id in planned if image_id not in done | failed]:
        yield wrong("latents", f"neither here nor in quarantine: {first_names(lost)}")
    counts = len(done & known), len(failed & known)
    if counts != (manifest.ok, manifest.quarantined):
        told = f"{manifest.ok} done and {manifest.quarantined} quarantined images"
        yield Problem(
            file=manifest_key(shard),
            problem=f"{told}, the tables have {counts[0]} and {counts[1]}",
            way_out=_DELETE,
        )


def _twice(table: str, rows: pa.Table) -> list[str]:
    if table not in _ONCE:
        return []
    found = rows.drop_columns(["shard"]).to_pylist()
    counts = Counter(tuple(row.values()) for row in found if row.get("kind") != "edit")
    return sorted({str(key[0]) for key, count in counts.items() if count > 1})


def first_names(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more
