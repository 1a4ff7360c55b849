"""Check that the tables of a shard match its manifest and contain every planned image once.

An image may have rows of several faces, each with an id of its own, which the manifest names.

One file is read at a time, and only the columns that identify its rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from dhr_batch.pipeline import sealed
from dhr_batch.pipeline.printable import first_names
from dhr_batch.pipeline.runs.names import manifest_key, part
from dhr_batch.pipeline.runs.parts import difference
from dhr_batch.pipeline.runs.reading import damaged_manifest
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.tables.schemas import SCHEMA_VERSION

_AGAIN = "start the same command again: it computes the shard again"
_DELETE = f"delete it, then {_AGAIN}"
# The columns that identify a row among those of its image. Edits are excluded, as the settings may
# name one twice.
_ONCE: dict[str, tuple[str, ...]] = {
    "latents": (),
    "quarantine": (),
    "images": ("kind", "edit_name", "edit_strength"),
    "masks": ("kind",),
    "deltas": ("tensor",),
    "features": ("kind", "extractor"),
}


class Problem(BaseModel):
    """What is wrong with a file.

    Attributes:
        file: The key of the file.
        problem: What is wrong.
        way_out: What the user can do about it.
    """

    file: str
    problem: str
    way_out: str


def check(
    storage: Storage,
    shard: int,
    planned: Sequence[str],
    expected: Sequence[str],
    manifest: Manifest,
    sizes: dict[str, int],
) -> Iterator[Problem]:
    """Yield the problems of the published files of a shard.

    Args:
        storage: The place of the run.
        shard: The number of the shard.
        planned: Its image ids.
        expected: The tables that each shard has according to the plan.
        manifest: Its manifest.
        sizes: The size in bytes of each file of the run.

    Raises:
        StorageError: If the storage does not answer.
    """
    tables: dict[str, pa.Table] = {}
    if missing := [table for table in expected if table not in manifest.files]:
        yield Problem(
            file=manifest_key(shard),
            problem=f"it names no file of the tables {first_names(missing)}",
            way_out=damaged_manifest(shard),
        )
    for table, facts in manifest.files.items():
        key = part(table, shard)
        # A file that was moved during the listing may be missing from it.
        if key not in sizes and key not in storage.sizes(table):
            yield Problem(file=key, problem="missing", way_out=_AGAIN)
            continue
        with storage.local(key) as path:
            if wrong := difference(path, facts):
                yield Problem(file=key, problem=wrong, way_out=_DELETE)
            rows = yield from _rows(path, table, key, facts.rows, bool(wrong))
        if rows is not None:
            tables[table] = rows
    yield from _check_images(shard, planned, manifest, tables)


def _rows(
    path: Path, table: str, key: str, rows: int, damaged: bool
) -> Generator[Problem, None, pa.Table | None]:
    """Yield the problems of the footer and schema of a file.

    Args:
        path: A local copy of the file.
        table: The name of the table.
        key: The key of the file.
        rows: The number of rows according to the manifest.
        damaged: Whether a problem of the file was reported already.

    Returns:
        The columns that identify rows, or None if they cannot be read.
    """
    try:
        file = pq.ParquetFile(path)
        columns = ["image_id", "shard", *_ONCE.get(table, ())]
        found = file.read(columns=columns)
        missing = set(columns) - set(found.column_names)
        with sealed.damage():
            about = json.loads((file.schema_arrow.metadata or {}).get(b"dhr_batch", b"{}"))
            about = dict(about)
    except (OSError, ValueError, pa.ArrowException) as error:
        if not damaged:
            problem = f"cannot be read as Parquet: {error}"
            yield Problem(file=key, problem=problem, way_out=_DELETE)
        return None
    if file.metadata.num_rows != rows:
        problem = f"it has {file.metadata.num_rows} rows; its manifest says {rows}"
        yield Problem(file=key, problem=problem, way_out=_DELETE)
    if missing:
        problem = f"it lacks the columns {first_names(sorted(missing))}"
        yield Problem(file=key, problem=problem, way_out=_DELETE)
        return None
    # Files of older versions have fewer columns and can still be read.
    readable = about.get("schema_version") in range(1, SCHEMA_VERSION + 1)
    has_card = b"huggingface" in (file.schema_arrow.metadata or {})
    if about.get("table") != table or not readable or not has_card:
        problem = "its metadata (dhr_batch, huggingface) is missing or belongs to another table"
        yield Problem(file=key, problem=problem, way_out=_DELETE)
    return found


def _check_images(
    shard: int, planned: Sequence[str], manifest: Manifest, tables: dict[str, pa.Table]
) -> Iterator[Problem]:
    """Yield a problem if a planned image is not exactly once in the tables or in quarantine."""

    def wrong(table: str, problem: str) -> Problem:
        key = part(table, shard)
        return Problem(file=key, problem=problem, way_out=_DELETE)

    named = {image_id: manifest.rows_of(image_id) for image_id in planned}
    expected = {row for rows in named.values() for row in rows}
    ids = {table: rows["image_id"].to_pylist() for table, rows in tables.items()}
    for table, rows in tables.items():
        known = set(planned) if table == "quarantine" else expected
        if unknown := sorted(set(ids[table]) - known):
            yield wrong(table, f"images not in the plan of the shard: {first_names(unknown)}")
        if set(rows["shard"].to_pylist()) - {shard}:
            yield wrong(table, f"rows of other shards than {shard}")
        if repeated := _repeated(table, rows):
            yield wrong(table, f"images with repeated rows: {first_names(repeated)}")
    if not {"latents", "images", "quarantine"} <= tables.keys():
        return
    failed, found = set(ids["quarantine"]), set(ids["latents"]) | set(ids["images"])
    for table in sorted(tables.keys() - {"quarantine"}):
        own = set(ids[table])
        if both := [i for i in sorted(failed) if not own.isdisjoint(named.get(i, (i,)))]:
            yield wrong(table, f"images that are also in quarantine: {first_names(both)}")
    done = [image_id for image_id in planned if not found.isdisjoint(named[image_id])]
    whole = {row for image_id in done for row in named[image_id]}
    for table in ("latents", "images"):
        if lacking := sorted((found | whole) - set(ids[table])):
            yield wrong(table, f"images without rows: {first_names(lacking)}")
    if lost := [image_id for image_id in planned if image_id not in failed.union(done)]:
        yield wrong("latents", f"images neither here nor in quarantine: {first_names(lost)}")
    counts = len(done), len(failed.intersection(planned))
    if counts != (manifest.ok, manifest.quarantined):
        yield Problem(
            file=manifest_key(shard),
            problem=f"it counts {manifest.ok} done and {manifest.quarantined} quarantined images; "
            f"the tables have {counts[0]} and {counts[1]}",
            way_out=_DELETE,
        )


def _repeated(table: str, rows: pa.Table) -> list[str]:
    """Return the images that have the same row more than once."""
    if table not in _ONCE:
        return []
    found = rows.drop_columns(["shard"]).to_pylist()
    counts = Counter(tuple(row.values()) for row in found if row.get("kind") != "edit")
    return sorted({str(key[0]) for key, count in counts.items() if count > 1})
