"""The Parquet tables of a run: schemas, Record -> rows, and how the files are written.

Vectors are nested fixed-size lists, the only layout that pandas, polars, duckdb and Hugging Face
`datasets` all read. `edits.effect` is a list of key and value because `datasets` refuses maps.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dhr_batch.pipeline import codec
from dhr_batch.stages.base import Edit, Record

SCHEMA_VERSION = 1
TABLES = ("images", "latents", "masks", "edits", "metrics", "quarantine", "deltas", "features")

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_KEY_VALUES = pa.list_(pa.struct([("key", pa.string()), ("value", pa.float64())]))
_BLOBS = frozenset({"image.bytes", "mask.bytes", "data"})
# Encoded pictures and int8 deltas fill row groups; below this size a group is still one read.
_GROUP_BYTES = 64 * 2**20
_GROUP_ROWS = 256

Row = dict[str, Any]


@dataclass(frozen=True)
class RunInfo:
    """What the tables say about the run that made them.

    rows: rows of a W+ code. embedder: name of the embedding stage. thresholds: of the
    segmentation. metadata: stored in every file under the key `dhr_batch`.
    """

    rows: int
    embedder: str
    thresholds: dict[str, float] = field(default_factory=dict)
    store_deltas: bool = True
    random_weights: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables this run writes."""
        unused = {"features"} | (set() if self.store_deltas else {"deltas"})
        return tuple(t for t in TABLES if t not in unused)


def schema(table: str, rows: int) -> pa.Schema:
    """Columns of a table; rows: rows of a W+ code."""
    latent = pa.list_(pa.list_(pa.float32(), 512), rows)
    columns: dict[str, list[tuple[str, pa.DataType]]] = {
        "images": [
            ("split", pa.string()),
            ("source", pa.string()),
            ("face_index", pa.int32()),
            ("image", _PICTURE),
            ("kind", pa.string()),
            ("edit_name", pa.string()),
            ("edit_strength", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("source_width", pa.int32()),
            ("source_height", pa.int32()),
            ("quad", pa.list_(pa.float64(), 8)),
            ("note", pa.string()),
        ],
        "latents": [("embedder", pa.string()), ("space", pa.string()), ("latent", latent)],
        "masks": [
            ("mask", _PICTURE),
            ("kind", pa.string()),
            ("theta", _KEY_VALUES),
            ("area_fraction", pa.float64()),
        ],
        "deltas": [
            ("tensor", pa.string()),
            ("kind", pa.string()),
            ("shape", pa.list_(pa.int32())),
            ("dtype", pa.string()),
            ("scheme", pa.string()),
            ("scales", pa.list_(pa.float32())),
            ("data", pa.large_binary()),
        ],
        "metrics": [
            ("stage", pa.string()),
            ("metric", pa.string()),
            ("value", pa.float64()),
            ("model", pa.string()),
        ],
        "features": [
            ("kind", pa.string()),
            ("extractor", pa.string()),
            ("feature", pa.list_(pa.float32())),
        ],
        "edits": [
            ("edit", pa.string()),
            ("strength", pa.float64()),
            ("direction_sha256", pa.string()),
            ("latent", latent),
            ("effect", _KEY_VALUES),
        ],
        "quarantine": [
            ("source", pa.string()),
            ("stage", pa.string()),
            ("error_class", pa.string()),
            ("message", pa.string()),
        ],
    }
    keys = [("image_id", pa.string()), ("shard", pa.int32())]
    return pa.schema([*keys, *columns[table]])


def described(table: str, info: RunInfo) -> pa.Schema:
    """The schema with metadata for Hugging Face (`huggingface`) and about the run (`dhr_batch`)."""
    plain = schema(table, info.rows)
    about = {"schema_version": SCHEMA_VERSION, "table": table, **info.metadata}
    if info.random_weights:
        about["warning"] = "random weights"
    features = {column.name: _hugging_face(column.type) for column in plain}
    return plain.with_metadata(
        {
            "huggingface": json.dumps({"info": {"features": features}}),
            "dhr_batch": json.dumps(about, sort_keys=True),
        }
    )


def _hugging_face(kind: pa.DataType) -> Any:
    if kind == _PICTURE:
        return {"_type": "Image"}
    if pa.types.is_fixed_size_list(kind):
        return {
            "_type": "Sequence",
            "length": kind.list_size,
            "feature": _hugging_face(kind.value_type),
        }
    if pa.types.is_list(kind):
        return {"_type": "Sequence", "feature": _hugging_face(kind.value_type)}
    if pa.types.is_struct(kind):
        return {part.name: _hugging_face(part.type) for part in kind}
    names = {"double": "float64", "float": "float32"}
    return {"_type": "Value", "dtype": names.get(str(kind), str(kind))}


def png(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode uint8 [H, W, 3] or [H, W], or bool [H, W] (1 bit); `text` becomes tEXt chunks."""
    notes = PngInfo()
    for key, value in (text or {}).items():
        notes.add_text(key, value)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", pnginfo=notes)
    return stream.getvalue()


def edit_text(edit: Edit) -> dict[str, str]:
    """What every edited picture says about itself."""
    return {
        "Software": "dhr-batch",
        "Comment": f"edited by dhr-batch: {edit.name} {edit.strength:+g}",
        "dhr-batch:edit": edit.name,
        "dhr-batch:strength": f"{edit.strength:g}",
    }


def rows_of(record: Record, shard: int, info: RunInfo) -> dict[str, list[Row]]:
    """All rows of one image by table: quarantine only for a failed one, else everything else."""
    if record.failure is not None:
        failure = record.failure
        tables: dict[str, list[Row]] = {
            "quarantine": [
                {
                    "source": record.source,
                    "stage": failure.stage,
                    "error_class": failure.error_class,
                    "message": failure.message,
                }
            ]
        }
    else:
        tables = {
            "images": list(_image_rows(record, info)),
            "latents": list(_latent_rows(record, info)),
            "masks": list(_mask_rows(record, info)),
            "edits": [_edit_row(edit) for edit in record.edits],
            "metrics": list(_metric_rows(record, info)),
        }
        if info.store_deltas:
            tables["deltas"] = list(_delta_rows(record))
    key = {"image_id": record.image_id, "shard": shard}
    return {table: [key | row for row in rows] for table, rows in tables.items()}


def _image_rows(record: Record, info: RunInfo) -> Iterator[Row]:
    width, height = record.source_size or (None, None)
    notes = (*record.notes, "random weights") if info.random_weights else record.notes
    common: Row = {
        "split": record.split,
        "source": record.source,
        "face_index": record.face_index,
        "source_width": width,
        "source_height": height,
        "quad": None if record.quad is None else record.quad.astype(np.float64).ravel().tolist(),
        "note": "; ".join(notes),
    }
    kinds = (("aligned", record.image), ("inverted", record.inverted), ("refined", record.refined))
    for kind, pixels in kinds:
        if pixels is not None:
            yield common | {"kind": kind} | _picture("image", record.image_id, kind, pixels)
    for edit in record.edits:
        name = f"{edit.name}.{edit.strength:g}"
        picture = _picture("image", record.image_id, name, edit.image, edit_text(edit))
        named = {"kind": "edit", "edit_name": edit.name, "edit_strength": edit.strength}
        yield common | named | picture


def _picture(
    column: str, image_id: str, kind: str, pixels: np.ndarray, text: dict[str, str] | None = None
) -> Row:
    picture = {"bytes": png(pixels, text), "path": f"{image_id}.{kind}.png"}
    return {column: picture, "width": pixels.shape[1], "height": pixels.shape[0]}


def _latent_rows(record: Record, info: RunInfo) -> Iterator[Row]:
    if record.latent is not None:
        equal = bool((record.latent == record.latent[:1]).all())
        space = "w" if equal else "w+"
        yield {"embedder": info.embedder, "space": space, "latent": record.latent}


def _mask_rows(record: Record, info: RunInfo) -> Iterator[Row]:
    theta = _pairs(info.thresholds)
    if record.mask is not None:
        mask = _picture("mask", record.image_id, "in_domain", record.mask.astype(bool))
        share = float(record.mask.mean())
        yield {"mask": mask["mask"], "kind": "in_domain", "theta": theta, "area_fraction": share}
    if record.labels is not None:
        labels = _picture("mask", record.image_id, "labels", record.labels.astype(np.uint8))
        yield {"mask": labels["mask"], "kind": "labels", "theta": [], "area_fraction": None}


def _edit_row(edit: Edit) -> Row:
    return {
        "edit": edit.name,
        "strength": edit.strength,
        "direction_sha256": edit.direction_sha256,
        "latent": edit.latent,
        "effect": _pairs(edit.effect),
    }


def _metric_rows(record: Record, info: RunInfo) -> Iterator[Row]:
    suffix = " (random weights)" if info.random_weights else ""
    for metric in record.metrics:
        yield {
            "stage": metric.stage,
            "metric": metric.metric,
            "value": metric.value,
            "model": metric.model if suffix in metric.model else metric.model + suffix,
        }


def _delta_rows(record: Record) -> Iterator[Row]:
    tensors = [(name, "weight", value) for name, value in (record.delta or {}).items()]
    if record.feature is not None:
        tensors.append(("feature", "feature", record.feature))
    for name, kind, value in tensors:
        encoded = codec.encode(value)
        yield {
            "tensor": name,
            "kind": kind,
            "shape": list(value.shape),
            "dtype": str(value.dtype),
            "scheme": codec.SCHEME,
            "scales": encoded.scales,
            "data": encoded.data,
        }


def _pairs(values: Mapping[str, float]) -> list[Row]:
    return [{"key": key, "value": float(value)} for key, value in values.items()]


def to_arrow(rows: list[Row], kind: pa.Schema) -> pa.Table:
    """Rows as an Arrow table; W+ codes are float32 arrays [L, 512]."""
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
    """zstd for numbers, nothing for PNG bytes, BYTE_STREAM_SPLIT for float lists.

    Measured on W+ codes: dictionary encoding makes them 7 % larger than raw, byte stream split
    and zstd 15 % smaller. Dictionaries are kept for text.
    """
    leaves = [kind_leaf for column in kind for kind_leaf in _leaves(column.name, column.type)]
    pictures = {name for name, _ in leaves if name.endswith(".bytes")}
    return {
        "compression": {name: "none" if name in pictures else "zstd" for name, _ in leaves},
        "compression_level": {name: 3 for name, _ in leaves if name not in pictures},
        "use_dictionary": [name for name, leaf in leaves if pa.types.is_string(leaf)],
        "use_byte_stream_split": [
            name for name, leaf in leaves if pa.types.is_float32(leaf) and "list" in name
        ],
        "write_statistics": [name for name, _ in leaves if name not in _BLOBS],
        "write_page_index": True,
    }


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    if pa.types.is_struct(kind):
        for part in kind:
            yield from _leaves(f"{path}.{part.name}", part.type)
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path, kind


class TableFile:
    """One Parquet file in the making: rows are grouped as readers want them.

    Pictures: groups of at most about 64 MB. Deltas: one image per group, so that one image can be
    read alone. Others: 256 rows.
    """

    def __init__(self, path: Path, table: str, info: RunInfo) -> None:
        self.path, self.table = path, table
        self.schema = described(table, info)
        # An empty table has no row group at all: `datasets` fails on a group without rows.
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
        """Finish the file and read its footer back. Raises OSError where rows are missing."""
        if self._pending:
            self._write(len(self._pending))
        self._writer.close()
        found = pq.read_metadata(self.path).num_rows
        if found != self.rows:
            raise OSError(f"{self.path} holds {found} rows, {self.rows} were written")


def _blob_bytes(row: Row) -> int:
    pictures = sum(len(row[key]["bytes"]) for key in ("image", "mask") if key in row)
    return pictures + len(row.get("data", b""))
