"""Write Parquet files of the tables, with their encodings, compression and row groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dhr_batch.pipeline.tables.rows import Row
from dhr_batch.pipeline.tables.schemas import RunInfo, described

# Binary columns, for which minimum and maximum mean nothing.
_BLOBS = frozenset({"image.bytes", "mask.bytes", "data", "cells"})
# Row groups of pictures end at this size, which can still be read at once.
_GROUP_BYTES = 64 * 2**20
_GROUP_ROWS = 256


def to_arrow(rows: list[Row], kind: pa.Schema) -> pa.Table:
    """Convert rows to an Arrow table. `latent` of a row is a float32 array [L, 512]."""
    columns = []
    for column in kind:
        if column.name == "latent":
            codes = np.stack([row["latent"] for row in rows]).astype(np.float32)
            flat = pa.array(codes.ravel())
            inner = pa.FixedSizeListArray.from_arrays(flat, 512)
            columns.append(pa.FixedSizeListArray.from_arrays(inner, column.type.list_size))
        else:
            columns.append(pa.array([row.get(column.name) for row in rows], column.type))
    return pa.Table.from_arrays(columns, schema=kind)


def writer_settings(kind: pa.Schema) -> dict[str, Any]:
    """Return keyword arguments for `pyarrow.parquet.ParquetWriter`.

    Numbers are compressed with zstd, PNG bytes not at all, and lists of floats are encoded with
    BYTE_STREAM_SPLIT first. On W+ codes, that and zstd save 15 %, whereas dictionary encoding costs
    7 %, so dictionaries are used for text only. The codes of deltas repeat only by chance: zstd at
    level 1, which hardly searches for repetitions, makes them 3 to 9 % smaller than at level 3.
    """
    leaves = [leaf for column in kind for leaf in _leaves(column.name, column.type)]
    pictures = {name for name, _ in leaves if name.endswith(".bytes")}
    return {
        "compression": {name: "none" if name in pictures else "zstd" for name, _ in leaves},
        "compression_level": {
            name: 1 if name == "data" else 3 for name, _ in leaves if name not in pictures
        },
        "use_dictionary": [name for name, leaf in leaves if pa.types.is_string(leaf)],
        "use_byte_stream_split": [
            name for name, leaf in leaves if pa.types.is_float32(leaf) and "list" in name
        ],
        "write_statistics": [name for name, _ in leaves if name not in _BLOBS],
        "write_page_index": True,
        "write_page_checksum": True,
    }


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Iterate over the leaf columns of a column: their Parquet paths and types."""
    if pa.types.is_struct(kind):
        for part in kind:
            yield from _leaves(f"{path}.{part.name}", part.type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind


class TableFile:
    """Writes one Parquet file, image by image.

    A row group holds up to 256 rows. It ends earlier when its pictures reach about 64 MB, and in
    the table `deltas` after each image, so that the deltas of one image can be read alone.
    """

    def __init__(self, path: Path, table: str, info: RunInfo) -> None:
        self.path, self.table = path, table
        self.schema = described(table, info)
        # An empty table gets no row group, because `datasets` fails on a group without rows.
        self._writer = pq.ParquetWriter(path, self.schema, **writer_settings(self.schema))
        self._pending: list[Row] = []
        self._bytes = 0
        self.rows = 0

    def append(self, rows: list[Row]) -> None:
        """Add all rows of one image."""
        self._pending += rows
        self.rows += len(rows)
        self._bytes += sum(_blob_bytes(row) for row in rows)
        if self._pending and (self.table == "deltas" or self._bytes >= _GROUP_BYTES):
            self._write(len(self._pending))
        while len(self._pending) >= _GROUP_ROWS:
            self._write(_GROUP_ROWS)

    def _write(self, count: int) -> None:
        chunk, self._pending = self._pending[:count], self._pending[count:]
        self._writer.write_table(to_arrow(chunk, self.schema), row_group_size=count)
        self._bytes = sum(_blob_bytes(row) for row in self._pending)

    def close(self) -> None:
        """Finish the file and verify its footer.

        Raises:
            OSError: If the file does not hold all rows.
        """
        if self._pending:
            self._write(len(self._pending))
        self._writer.close()
        found = pq.read_metadata(self.path).num_rows
        if found != self.rows:
            raise OSError(f"{self.path} holds {found} rows, {self.rows} were written")


def _blob_bytes(row: Row) -> int:
    pictures = sum(len(row[key]["bytes"]) for key in ("image", "mask") if key in row)
    return pictures + len(row.get("data", b""))
