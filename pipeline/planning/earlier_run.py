"""Read the records of a finished run from its tables, to begin another run from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dhr_batch.pipeline.datasets.items import Item, Unreadable
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.pipeline.runs.names import part
from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.tables.records import record_of
from dhr_batch.pipeline.tables.rows import Row
from dhr_batch.stages import failures, registry
from dhr_batch.stages.record import Record

# For each stage, the results of the stage before it: tables, kinds of pictures, and fields of a
# Record that every image has. For deltas see `tables_for`.
_RESULTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "embed": (("images",), ("aligned",), ("image",)),
    "segment": (("latents",), ("inverted",), ("latent", "inverted")),
    "refine": (("masks",), (), ("mask",)),
    "edit": ((), ("refined",), ("refined",)),
    "measure": (("edits",), ("edit",), ()),
}


def tables_for(config: Config) -> tuple[str, ...]:
    """Return the tables that hold the results of the stages before the first one of a run.

    Deltas are left out if the run neither uses them for edits nor stores them.
    """
    used = config.first_stage == "edit" or config.store_deltas != "none"
    deltas = used and "refine" not in config.stages and config.refine["name"] != "none"
    return (*_results(config.first_stage, 0), *(("deltas",) if deltas else ()))


def _results(stage: str, column: int) -> tuple[str, ...]:
    stages = registry.STAGES[1 : registry.STAGES.index(stage) + 1]
    return tuple(name for earlier in stages for name in _RESULTS[earlier][column])


class Reader:
    """Reads the records of a finished run, from which another run begins.

    A reader must be used by one thread at a time. Read images in the order of the plan: a row group
    holds many pictures and is then read only once.

    Args:
        config: The resolved settings of the new run.
    """

    def __init__(self, config: Config) -> None:
        self._tables, self._later = tables_for(config), config.stages
        self._kinds = _results(config.first_stage, 1)
        self._fields = _results(config.first_stage, 2)
        self._shard: tuple[str, int] = ("", -1)
        self._open: dict[str, _Rows] = {}
        self._records: tuple[str, RunRecords] | None = None
        self._parts: Parts | None = None

    def record(self, item: Item) -> Record:
        """Read the record of an image.

        Args:
            item: An item of `Origin.items`.

        Raises:
            Unreadable: If its rows, or the files that hold them, are damaged.
            StorageError: If the files cannot be read.
        """
        try:
            return self._record(item)
        except StorageError:
            raise
        except Exception as error:
            # pyarrow and Pillow report damage as an OSError without errno.
            if isinstance(error, OSError) and error.errno is not None:
                what = error.strerror or error
                raise StorageError(
                    f"the run in {item.location}", f"it cannot be read: {what}", locations.CHECK
                ) from error
            if failures.kind_of(error) != "image":
                raise
            raise Unreadable(f"its rows in the earlier run are damaged: {error}") from error

    def _record(self, item: Item) -> Record:
        if self._parts is None or self._shard != (item.place, item.at):
            self._open, self._shard = {}, (item.place, item.at)
            if self._records is None or self._records[0] != item.place:
                self._records = item.place, RunRecords(item.place)
            self._parts = Parts(self._records[1])
        rows = {table: self._rows(item, table, self._parts) for table in self._tables}
        record = record_of(item.image_id, rows)
        for field in self._fields:
            if getattr(record, field) is None:
                raise LookupError(f"no {field} of {item.image_id!r}")
        made_again = ("random weights", *(f"{stage}: " for stage in self._later))
        notes = tuple(note for note in record.notes if not note.startswith(made_again))
        return replace(record, notes=notes)

    def _rows(self, item: Item, table: str, parts: Parts) -> list[Row]:
        if table not in self._open:
            self._open[table] = _Rows(parts, part(table, item.at))
        return self._open[table].of(item.image_id, self._kinds if table == "images" else ())


class _Rows:
    """The file of one table of one shard. The last row group is cached."""

    def __init__(self, parts: Parts, key: str) -> None:
        # pyarrow itself would not try again if the store did not answer for a moment.
        content = locations.ranges(locations.join(parts.storage.address, key))
        parts.check([key])
        self._file = pq.ParquetFile(content, page_checksum_verification=True)
        self._groups: dict[str, list[int]] = {}
        for group in range(self._file.num_row_groups):
            ids = self._file.read_row_group(group, columns=["image_id"])["image_id"]
            for image_id in ids.unique().to_pylist():
                self._groups.setdefault(image_id, []).append(group)
        self._last: tuple[int, pa.Table] | None = None

    def of(self, image_id: str, kinds: Sequence[str]) -> list[Row]:
        """Return the rows of an image, of the given kinds only if there are any."""
        rows = []
        for group in self._groups.get(image_id, ()):
            table = self._group(group)
            keep = pc.equal(table["image_id"], image_id)
            if kinds:
                keep = pc.and_(keep, pc.is_in(table["kind"], pa.array(kinds)))
            rows += table.filter(keep).to_pylist()
        return rows

    def _group(self, number: int) -> pa.Table:
        if self._last is None or self._last[0] != number:
            self._last = number, self._file.read_row_group(number)
        return self._last[1]
