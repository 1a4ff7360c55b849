"""From the rows of the tables back to a Record: what a finished run left of each image."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from dhr_batch.pipeline import codec, locations
from dhr_batch.pipeline.commit import part
from dhr_batch.pipeline.config import Config
from dhr_batch.pipeline.sources import Item, Unreadable
from dhr_batch.pipeline.storage import StorageError
from dhr_batch.pipeline.tables import Row
from dhr_batch.stages import failures, registry
from dhr_batch.stages.base import Edit, Record

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


def record_of(image_id: str, tables: Mapping[str, Sequence[Row]]) -> Record:
    """What the rows of one image tell, by table; those of other tables are left out.

    Lossless for all but deltas (see `codec`). Raises LookupError, ValueError or OSError for damaged
    rows.
    """
    fields: dict[str, Any] = {"source": image_id}
    pictures = {}
    for row in tables.get("images", ()):
        pictures[row["kind"], row["edit_name"], row["edit_strength"]] = picture(row["image"])
        if row["kind"] == "aligned":
            fields |= _about(row)
    names = {"image": "aligned", "inverted": "inverted", "refined": "refined"}
    fields |= {name: pictures.get((kind, None, None)) for name, kind in names.items()}
    for row in tables.get("latents", ()):
        fields["latent"] = np.array(row["latent"], np.float32)
    for row in tables.get("masks", ()):
        fields["labels" if row["kind"] == "labels" else "mask"] = picture(row["mask"])
    if "deltas" in tables:
        delta = tensors(image_id, tables["deltas"])
        fields |= {"feature": delta.pop("feature", None), "delta": delta}
    fields["edits"] = tuple(
        Edit(
            row["edit"],
            row["strength"],
            row["direction_sha256"],
            np.array(row["latent"], np.float32),
            pictures["edit", row["edit"], row["strength"]],
        )
        for row in tables.get("edits", ())
    )
    return Record(image_id, **fields)


def _about(row: Row) -> dict[str, Any]:
    sizes = row["source_width"], row["source_height"]
    return {
        "source": row["source"],
        "split": row["split"],
        "face_index": row["face_index"],
        "source_size": None if None in sizes else sizes,
        "quad": None if row["quad"] is None else np.array(row["quad"]).reshape(4, 2),
        "notes": tuple(note for note in (row["note"] or "").split("; ") if note),
    }


def picture(value: Mapping[str, Any]) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W], or bool [H, W], of a picture or mask in a table."""
    with Image.open(io.BytesIO(value["bytes"]), formats=("PNG",)) as image:
        return np.array(image)


def tensors(image_id: str, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Tensors by name from rows of the table `deltas`, float32.

    Raises ValueError, naming the tensor, for a row that cannot be decoded.
    """
    found = {}
    for row in rows:
        try:
            found[row["tensor"]] = codec.decode(codec.Encoded.of(row), tuple(row["shape"]))
        except ValueError as error:
            raise ValueError(f"{row['tensor']} of {image_id!r}: {error}") from error
    return found


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
                raise StorageError(f"the run in {item.location} cannot be read: {what}") from error
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
