"""From the rows of the tables back to a Record: what a finished run left of each image."""

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
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.tables.records import record_of
from dhr_batch.pipeline.tables.rows import Row
from dhr_batch.stages import failures, registry
from dhr_batch.stages.base import Record

# By stage, what all stages before it have left: tables, kinds of pictures, and fields of a Record
# that every image has. Deltas: see `tables_for`.
_LEFT: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "embed": (("images",), ("aligned",), ("image",)),
    "segment": (("latents",), ("inverted",), ("latent", "inverted")),
    "refine": (("masks",), (), ("mask",)),
    "edit": ((), ("refined",), ("refined",)),
    "measure": (("edits",), ("edit",), ()),
}


def tables_for(config: Config) -> tuple[str, ...]:
    """The tables that tell what the stages before those of a run have left, as far as it needs.

    Deltas are left out where the run neither edits with them nor stores them.
    """
    used = config.first_stage == "edit" or config.store_deltas != "none"
    deltas = used and "refine" not in config.stages and config.refine["name"] != "none"
    return (*_left(config.first_stage, 0), *(("deltas",) if deltas else ()))


def _left(stage: str, what: int) -> tuple[str, ...]:
    stages = registry.STAGES[1 : registry.STAGES.index(stage) + 1]
    return tuple(name for earlier in stages for name in _LEFT[earlier][what])


class Reader:
    """Records of a finished run as the stages before those of a new one left them.

    config: of the new run. For one thread at a time. Images should be asked for in plan order: a
    row group holds many pictures, and is then read once.
    """

    def __init__(self, config: Config) -> None:
        self._tables, self._later = tables_for(config), config.stages
        self._kinds = _left(config.first_stage, 1)
        self._fields = _left(config.first_stage, 2)
        self._shard: tuple[str, int] = ("", -1)
        self._open: dict[str, _Rows] = {}

    def record(self, item: Item) -> Record:
        """The record of an image of `Origin.items`.

        Raises Unreadable for damaged rows, StorageError where the files are not there.
        """
        try:
            return self._record(item)
        except StorageError:
            raise
        except Exception as error:
            # pyarrow's and Pillow's own errors about damage are OSErrors without a number.
            if isinstance(error, OSError) and error.errno is not None:
                what = error.strerror or error
                raise StorageError(
                    f"the run in {item.location}", f"it cannot be read: {what}"
                ) from error
            if failures.kind_of(error) != "image":
                raise
            raise Unreadable(f"its rows in the run it comes from: {error}") from error

    def _record(self, item: Item) -> Record:
        if self._shard != (item.place, item.at):
            self._open, self._shard = {}, (item.place, item.at)
        rows = {table: self._rows(item, table) for table in self._tables}
        record = record_of(item.image_id, rows)
        for field in self._fields:
            if getattr(record, field) is None:
                raise LookupError(f"no {field} of {item.image_id!r}")
        made_again = ("random weights", *(f"{stage}: " for stage in self._later))
        notes = tuple(note for note in record.notes if not note.startswith(made_again))
        return replace(record, notes=notes)

    def _rows(self, item: Item, table: str) -> list[Row]:
        if table not in self._open:
            self._open[table] = _Rows(locations.join(item.place, part(table, item.at)))
        return self._open[table].of(item.image_id, self._kinds if table == "images" else ())


class _Rows:
    """One table of one shard. The row group that was read last is kept."""

    def __init__(self, location: str) -> None:
        # Not opened by pyarrow: that would try nothing again where a store is away for a moment.
        self._file = pq.ParquetFile(locations.ranges(location))
        self._groups: dict[str, list[int]] = {}
        for group in range(self._file.num_row_groups):
            ids = self._file.read_row_group(group, columns=["image_id"])["image_id"]
            for image_id in ids.unique().to_pylist():
                self._groups.setdefault(image_id, []).append(group)
        self._last: tuple[int, pa.Table] | None = None

    def of(self, image_id: str, kinds: Sequence[str]) -> list[Row]:
        """Rows of an image; kinds: of these only, if any are named."""
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
