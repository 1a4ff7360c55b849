"""Images in Parquet files: a column of encoded images, or Hugging Face's `struct<bytes, path>`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dhr_batch.pipeline.datasets.items import DatasetError, Item, Unreadable, each, image_id
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.storage.locations import File

_lock = threading.Lock()


def items(files: list[File], column: str | None, id_column: str | None) -> list[Item]:
    """Return one item per row, in the order of files and rows.

    Args:
        files: The Parquet files.
        column: The column of the images; None if only one column can hold images.
        id_column: The column of the ids. If None, ids are the paths of the image column if all of
            them exist and differ, and row numbers otherwise, after the name of the file if there
            are several files.

    Raises:
        DatasetError: If a column is missing or does not fit.
        StorageError: If the storage is unavailable.
    """
    found: list[Item] = []
    named: list[str | None] = []
    for rows, paths in each(partial(_index, column=column, id_column=id_column), files):
        found += rows
        named += paths
    names = [image_id(name) for name in named if name]
    if id_column:
        if len(names) != len(found):
            raise DatasetError(
                f"column {id_column!r}",
                "it is empty in some rows; ids are needed in all",
                "choose another id column",
            )
    elif len(names) != len(found) or len(set(names)) != len(names):
        return found
    return [item._replace(image_id=name) for item, name in zip(found, names, strict=True)]


def _index(
    file: File, column: str | None, id_column: str | None
) -> tuple[list[Item], list[str | None]]:
    try:
        parquet = _open(file.location)
        leaf = _leaf(parquet, column, file.location)
        return _rows(file, parquet, leaf), _names(parquet, leaf, id_column, file.location)
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            file.location, f"it cannot be read as Parquet: {error}", "replace the file"
        ) from error


def read_cell(location: str, leaf: str, row: int) -> bytes:
    """Read the encoded image of a row.

    Raises:
        Unreadable: If the row is damaged or empty.
        StorageError: If the storage is unavailable.
    """
    # With the lock, one thread decodes the row group and the others use the result.
    with _lock, _row_errors(location, row):
        group, first = _group_of(_kept(location), row)
        value = _values(location, leaf, group)[row - first].as_py()
    if value is None:
        raise Unreadable(f"{location}: row {row} holds no image")
    return value


def values(location: str, row: int, columns: tuple[str, ...]) -> dict[str, Any]:
    """Read other columns of a row.

    Raises:
        Unreadable: If the row is damaged.
        StorageError: If the storage is unavailable.
    """
    with _lock, _row_errors(location, row):
        group, first = _group_of(_kept(location), row)
        return _table(location, columns, group).slice(row - first, 1).to_pylist()[0]


def marked(location: str, key: bytes) -> bool:
    """Whether the metadata of a file contain a key.

    Raises:
        Unreadable: If the file is damaged.
        StorageError: If the storage is unavailable.
    """
    with _lock, _row_errors(location, 0):
        return key in (_kept(location).schema_arrow.metadata or {})


@contextmanager
def _row_errors(location: str, row: int) -> Iterator[None]:
    """Convert errors of reading to Unreadable for a damaged row, else to StorageError."""
    try:
        yield
    except StorageError:
        raise
    except (pa.ArrowException, OSError, IndexError) as error:
        # Errors of pyarrow about damaged files are OSErrors without an errno.
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(location, error.strerror or str(error), locations.CHECK) from error
        raise Unreadable(f"{location}: row {row} cannot be read: {error}") from error


def _open(location: str) -> pq.ParquetFile:
    # pyarrow's own file access has no retries for a mount that is temporarily unavailable.
    return pq.ParquetFile(locations.ranges(location))


_kept = lru_cache(maxsize=16)(_open)


def _group_of(parquet: pq.ParquetFile, row: int) -> tuple[int, int]:
    """Return the number and the first row of the row group that contains a row."""
    first = 0
    for number in range(parquet.metadata.num_row_groups):
        count = parquet.metadata.row_group(number).num_rows
        if row < first + count:
            return number, first
        first += count
    raise IndexError(f"the file has {first} rows now")


# Rows are read in order, so one decoded row group serves many images.
@lru_cache(maxsize=1)
def _values(location: str, leaf: str, group: int) -> pa.ChunkedArray:
    values = _kept(location).read_row_group(group, columns=[leaf]).column(0)
    return pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values


@lru_cache(maxsize=1)
def _table(location: str, columns: tuple[str, ...], group: int) -> pa.Table:
    return _kept(location).read_row_group(group, columns=list(columns))


def _leaf(parquet: pq.ParquetFile, column: str | None, location: str) -> str:
    """Return the path of the leaf column with the encoded images. Raises DatasetError."""
    schema = parquet.schema_arrow
    fits = {name: leaf for name in schema.names if (leaf := _image_leaf(schema.field(name)))}
    if column is not None and column not in fits:
        raise DatasetError(
            location,
            f"column {column!r} holds no encoded images (binary, or a struct with 'bytes')",
            f"choose from: {', '.join(fits) or 'none'} (all columns: {schema.names})",
        )
    if column is None and len(fits) != 1:
        raise DatasetError(
            location,
            f"{'several columns' if fits else 'no column'} could hold the images "
            f"({', '.join(fits) or schema.names})",
            "set 'column: NAME' in the dataset's YAML",
        )
    return fits[column or next(iter(fits))]


def _image_leaf(field: pa.Field) -> str | None:
    if pa.types.is_struct(field.type):
        names = [child.name for child in field.type]
        if "bytes" in names and _is_binary(field.type.field("bytes").type):
            return f"{field.name}.bytes"
        return None
    return field.name if _is_binary(field.type) else None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _rows(file: File, parquet: pq.ParquetFile, leaf: str) -> list[Item]:
    """Return items with row numbers as ids.

    The metadata contain no sizes of single rows, so the etag is made of the size of the row group.
    """
    metadata = parquet.metadata
    prefix = f"{file.relative}/" if file.relative else ""
    location = file.location
    rows: list[Item] = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(index) for index in range(group.num_columns))
        size = next(c.total_compressed_size for c in chunks if c.path_in_schema == leaf)
        etag = f"{size:x}.{file.etag}" if file.etag else f"{size:x}"
        rows += (
            Item(image_id(f"{prefix}{row:08d}"), location, "", -1, row, etag, leaf)
            for row in range(len(rows), len(rows) + group.num_rows)
        )
    return rows


def _names(
    parquet: pq.ParquetFile, leaf: str, id_column: str | None, location: str
) -> list[str | None]:
    """Return the ids or paths of the rows; empty if the file has none. Raises DatasetError."""
    schema = parquet.schema_arrow
    if id_column is not None:
        if id_column not in schema.names:
            raise DatasetError(
                location,
                f"it has no column {id_column!r}",
                f"choose from its columns: {schema.names}",
            )
        values = parquet.read([id_column]).column(0).to_pylist()
        return [None if value is None else str(value) for value in values]
    name = leaf.removesuffix(".bytes")
    kind = schema.field(name).type
    if not pa.types.is_struct(kind) or "path" not in [child.name for child in kind]:
        return []
    return pc.struct_field(parquet.read([f"{name}.path"]).column(0), "path").to_pylist()
