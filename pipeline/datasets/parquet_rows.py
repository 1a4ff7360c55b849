"""Read rows and columns of Parquet files that others wrote, within bounds.

A small file may stand for much: pages are packed, and one entry of a dictionary may be the value of
a million rows. Sizes in the metadata are compared with the file before anything is read, and rows
are read one after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dhr_batch.pipeline.datasets.items import DatasetError, Unreadable
from dhr_batch.pipeline.storage.locations import File, ranges

# What a column of a row group may unpack to: encoded images hardly get smaller, drawn bitmaps do.
_SMALL, _RATIO = 2**28, 8
# Rows of a file that is smaller than this number of bytes.
_FEW_ROWS = 2**20
_LONGEST_TEXT = 4096
# Rows that several threads read at about the same time.
_RECENT, _RECENT_BYTES = 32, 2**26
# What pyarrow and its callers raise on damage, besides its own errors.
DAMAGE = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError)


def check(file: File, parquet: pq.ParquetFile) -> None:
    """Check the numbers of rows in the metadata of a file.

    Raises:
        DatasetError: If there are more rows than a file of this size can hold.
    """
    metadata = parquet.metadata
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    most = max(_FEW_ROWS, file.size)
    if any(count < 0 for count in counts) or sum(counts) > most:
        raise DatasetError(
            file.location,
            f"its metadata name {sum(counts)} rows, which {file.size} bytes cannot hold",
            "replace the file",
        )


def position(parquet: pq.ParquetFile, leaf: str) -> int:
    """Return the number of the column that stores a leaf, such as `image.bytes`.

    Raises:
        LookupError: If there is none, or several have this name.
    """
    found = _positions(parquet, leaf)
    if len(found) != 1:
        raise LookupError(f"{len(found)} columns are called {leaf!r}")
    return found[0]


def _positions(parquet: pq.ParquetFile, column: str) -> list[int]:
    """Return the numbers of the columns that store a leaf, or all leaves of a column."""
    columns = parquet.metadata.schema
    paths = [columns.column(index).path for index in range(len(columns))]
    return [i for i, path in enumerate(paths) if f"{path}.".startswith(f"{column}.")]


def _check_size(chunk: pq.ColumnChunkMetaData, what: str) -> None:
    packed, unpacked = chunk.total_compressed_size, chunk.total_uncompressed_size
    if min(packed, unpacked) < 0 or unpacked > _SMALL + _RATIO * packed:
        raise ValueError(
            f"{what} unpacks from {packed} to {unpacked} bytes; write the file again in smaller "
            "row groups"
        )


class Rows:
    """The rows of one row group, read in order. Recent ones are kept.

    Args:
        parquet: The file.
        group: The number of the row group.
        columns: The columns to read, or leaves of them.

    Raises:
        Unreadable: If the row group unpacks to much more than it is.
    """

    def __init__(self, parquet: pq.ParquetFile, group: int, columns: Sequence[str]) -> None:
        about = parquet.metadata.row_group(group)
        try:
            for name in columns:
                for number in _positions(parquet, name):
                    _check_size(about.column(number), f"a row group of {name!r}")
        except ValueError as error:
            raise Unreadable(str(error)) from error
        self._open = lambda: parquet.iter_batches(
            1, row_groups=[group], columns=list(columns), use_threads=False
        )
        self._batches, self._next = self._open(), 0
        self._recent: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._damage: Exception | None = None

    def row(self, number: int) -> pa.RecordBatch:
        """Return a row of the group, as a table of one row.

        Raises:
            ArrowException, OSError, IndexError: If it cannot be read.
        """
        if number in self._recent:
            return self._recent[number]
        if number < self._next and self._damage is None:
            self._batches, self._next = self._open(), 0
        while self._next <= number:
            if self._damage is not None:
                raise self._damage
            try:
                batch = next(self._batches)
            except StopIteration:
                raise IndexError(f"the row group ends before row {number}") from None
            except DAMAGE as error:
                self._damage = error
                continue
            self._recent[self._next] = batch
            self._next += 1
            self._trim()
        return self._recent[number]

    def _trim(self) -> None:
        while len(self._recent) > 1 and (
            len(self._recent) > _RECENT
            or sum(batch.nbytes for batch in self._recent.values()) > _RECENT_BYTES
        ):
            self._recent.popitem(last=False)


def texts(parquet: pq.ParquetFile, leaf: str, location: str) -> list[Any]:
    """Read a whole column of ids or paths.

    Raises:
        DatasetError: If it is longer than such a column can be.
    """
    metadata, number = parquet.metadata, position(parquet, leaf)
    # A dictionary stays one, so that a long text in it is not repeated for each row.
    kept = pq.ParquetFile(ranges(location), read_dictionary=[leaf])
    found: list[Any] = []
    try:
        for group in range(metadata.num_row_groups):
            _check_size(metadata.row_group(group).column(number), f"column {leaf!r}")
            values = kept.read_row_group(group, columns=[leaf]).column(0)
            while pa.types.is_struct(values.type):
                values = pc.struct_field(values, values.type.field(0).name)
            for chunk in values.chunks:
                distinct = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
                if _is_text(distinct.type) and len(distinct):
                    longest = pc.max(pc.binary_length(distinct)).as_py() or 0
                    if longest > _LONGEST_TEXT:
                        raise ValueError(f"column {leaf!r} has a text of {longest} bytes")
                found += chunk.to_pylist()
    except ValueError as error:
        raise DatasetError(location, str(error), "choose another column, or none") from error
    return found


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_name(kind: pa.DataType) -> bool:
    """Whether values of a type can be ids: texts and whole numbers."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_text(kind) or pa.types.is_integer(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether values of a type are texts."""
    return _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)


def is_binary(kind: pa.DataType) -> bool:
    """Whether values of a type can be encoded images."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
