"""Images in Parquet files: a column of encoded images, or Hugging Face's `struct<bytes, path>`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dhr_batch.pipeline.datasets import parquet_rows
from dhr_batch.pipeline.datasets.items import DatasetError, Item, Unreadable, image_id, readable
from dhr_batch.pipeline.datasets.parquet_rows import Rows
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.storage.locations import File

# More bytes than the headers of the pages of a column of nulls have.
_HEADER = 1000
_lock = threading.Lock()


def items(
    files: list[File], column: str | None, id_column: str | None, lost: Callable[[str, str], None]
) -> list[Item]:
    """Return one item per row, in the order of files and rows.

    Args:
        files: The Parquet files.
        column: The column of the images; None if only one column can hold images.
        id_column: The column of the ids. If None, ids are the paths of the image column if all of
            them exist and differ, and row numbers otherwise, after the name of the file if there
            are several files.
        lost: Called with the path of each file without the images, and the reason.

    Raises:
        DatasetError: If a column is missing or does not fit in all files, or no row holds an image.
        StorageError: If the storage is unavailable.
    """
    found: list[Item] = []
    named: list[str | None] = []
    empty = True
    index = partial(_index, column=column, id_column=id_column)
    for _, (rows, paths, is_empty) in readable(index, files, lost):
        found += rows
        named += paths
        empty &= is_empty
    if found and empty:
        raise _no_images(files[0], found[0].leaf, [] if id_column else named)
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


def _no_images(file: File, leaf: str, names: list[str | None]) -> DatasetError:
    column = leaf.removesuffix(".bytes")
    example = next(filter(None, names), None)
    if example is None:
        return DatasetError(
            file.location,
            f"column {column!r} is empty in all rows, so the file contains no images",
            "store the encoded images in it, or choose another column",
        )
    return DatasetError(
        file.location,
        f"column {column!r} holds only the names of files, such as {example!r}, and not the images",
        "give the folder that contains these files, or store their bytes in the column",
    )


def _index(
    file: File, column: str | None, id_column: str | None
) -> tuple[list[Item], list[str | None], bool]:
    """Return the rows of a file, their names, and whether no row holds an image."""
    try:
        parquet = _open(file.location)
        parquet_rows.check(file, parquet)
        leaf = _leaf(parquet, column, file.location)
        names = _names(parquet, leaf, id_column, file.location)
        return _rows(file, parquet, leaf), names, _is_empty(parquet, leaf)
    except (StorageError, DatasetError):
        raise
    except parquet_rows.DAMAGE as error:
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
        value = _image_rows(location, (leaf,), group).row(row - first).column(0)[0].as_py()
    value = value.get("bytes") if isinstance(value, dict) else value
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
        return _other_rows(location, columns, group).row(row - first).to_pylist()[0]


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
    except parquet_rows.DAMAGE as error:
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


def _opened(location: str, columns: tuple[str, ...], group: int) -> Rows:
    return Rows(_kept(location), group, columns)


# Rows are read in order, so one row group serves many images.
_image_rows = lru_cache(maxsize=1)(_opened)
_other_rows = lru_cache(maxsize=1)(_opened)


def _leaf(parquet: pq.ParquetFile, column: str | None, location: str) -> str:
    """Return the path of the leaf column with the encoded images. Raises DatasetError."""
    schema = parquet.schema_arrow
    fits = {field.name: leaf for field in schema if (leaf := _image_leaf(field))}
    lists = [field.name for field in schema if _holds_lists(field.type)]
    if lists and column is None:
        raise DatasetError(
            location,
            f"column {lists[0]!r} holds lists of images, which are not read",
            "write a row for each image"
            + (", or set 'column: NAME' in the dataset's YAML" if fits else ""),
        )
    chosen = [column] if column is not None and column in fits else [*fits]
    for name in chosen:
        _require_one(schema, name, location)
    if column is not None and column not in fits:
        raise DatasetError(
            location,
            f"column {column!r} holds no encoded images (binary, or a struct with 'bytes')",
            f"choose from: {', '.join(fits) or 'none'} (all columns: {schema.names})",
        )
    if not fits:
        raise DatasetError(
            location,
            f"no column could hold the images ({schema.names}): none is binary, or a struct with "
            "'bytes'",
            "give a file that holds encoded images; names of files and links are not followed",
        )
    if column is None and len(fits) != 1:
        raise DatasetError(
            location,
            f"several columns could hold the images ({', '.join(fits)})",
            "set 'column: NAME' in the dataset's YAML",
        )
    return fits[column or next(iter(fits))]


def _require_one(schema: pa.Schema, name: str, location: str) -> None:
    if len(places := schema.get_all_field_indices(name)) > 1:
        raise DatasetError(
            location,
            f"columns {' and '.join(map(str, places))} are both called {name!r}",
            "rename one of them",
        )


def _image_leaf(field: pa.Field) -> str | None:
    if pa.types.is_struct(field.type):
        found = [child for child in field.type if child.name == "bytes"]
        fits = len(found) == 1 and parquet_rows.is_binary(found[0].type)
        return f"{field.name}.bytes" if fits else None
    return field.name if parquet_rows.is_binary(field.type) else None


def _holds_lists(kind: pa.DataType) -> bool:
    types = pa.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return lists and _image_leaf(kind.value_field) is not None


def _rows(file: File, parquet: pq.ParquetFile, leaf: str) -> list[Item]:
    """Return items with row numbers as ids.

    The metadata contain no sizes of single rows, so the etag is made of the size of the row group.
    """
    metadata, column = parquet.metadata, parquet_rows.position(parquet, leaf)
    prefix = f"{file.relative}/" if file.relative else ""
    location = file.location
    rows: list[Item] = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = group.column(column).total_compressed_size
        etag = f"{size:x}"
        if file.etag or file.time:
            etag += f".{file.etag}" if file.etag else f"@{file.time}"
        rows += (
            Item(image_id(f"{prefix}{row:08d}"), location, "", -1, row, etag, leaf)
            for row in range(len(rows), len(rows) + group.num_rows)
        )
    return rows


def _is_empty(parquet: pq.ParquetFile, leaf: str) -> bool:
    """Whether no row of a file holds an image, as far as it tells this at no great cost."""
    column = parquet_rows.position(parquet, leaf)
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        chunk = group.column(column)
        if chunk.statistics is not None and chunk.statistics.has_null_count:
            if chunk.statistics.null_count < group.num_rows:
                return False
        elif chunk.total_uncompressed_size > _HEADER + group.num_rows:
            # More than a byte for each row.
            return False
        else:
            batches = parquet.iter_batches(
                1024, row_groups=[number], columns=[leaf], use_threads=False
            )
            if any(_has_image(batch.column(0)) for batch in batches):
                return False
    return True


def _has_image(values: pa.Array) -> bool:
    values = pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
    return values.null_count < len(values)


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
        _require_one(schema, id_column, location)
        kind = schema.field(id_column).type
        if not parquet_rows.is_name(kind):
            raise DatasetError(
                location,
                f"column {id_column!r} holds {kind}, and such values cannot be ids",
                "choose a column of texts or whole numbers",
            )
        values = parquet_rows.texts(parquet, id_column, location)
        return [None if value is None else str(value) for value in values]
    if leaf in schema.names:
        return []
    name = leaf.removesuffix(".bytes")
    paths = [child for child in schema.field(name).type if child.name == "path"]
    if len(paths) != 1 or not parquet_rows.is_text(paths[0].type):
        return []
    return parquet_rows.texts(parquet, f"{name}.path", location)
