"""The columns and the metadata of the Parquet tables of a run.

Vectors are nested fixed-size lists, the only layout that pandas, polars, duckdb and Hugging Face
`datasets` all read. `edits.effect` is a list of key-value pairs because `datasets` rejects maps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dhr_batch.pipeline.tables.codec import LEVELS, Steps

SCHEMA_VERSION = 3
TABLES = ("images", "latents", "masks", "edits", "metrics", "quarantine", "deltas", "features")

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_KEY_VALUES = pa.list_(pa.struct([("key", pa.string()), ("value", pa.float64())]))


@dataclass(frozen=True)
class RunInfo:
    """Facts about a run that its tables record.

    Attributes:
        rows: Number of rows of a W+ code.
        embedder: Name of the embedding stage.
        thresholds: Thresholds of the segmentation.
        deltas: Quantization steps of the deltas; None if they are not stored.
        magnitudes: Magnitudes of the published generator, to which the steps are relative.
        store_features: Whether the features for distances between sets are stored.
        random_weights: Whether the generator is untrained.
        metadata: Stored in every file under the key `dhr_batch`.
    """

    rows: int
    embedder: str
    thresholds: dict[str, float] = field(default_factory=dict)
    deltas: Steps | None = LEVELS["small"]
    magnitudes: dict[str, float] = field(default_factory=dict)
    store_features: bool = False
    random_weights: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that this run writes."""
        stored = {"deltas": self.deltas is not None, "features": self.store_features}
        return tuple(t for t in TABLES if stored.get(t, True))


def schema(table: str, rows: int) -> pa.Schema:
    """Return the columns of a table.

    Args:
        table: One of `TABLES`.
        rows: Number of rows of a W+ code.
    """
    latent = pa.list_(pa.list_(pa.float32(), 512), rows)
    columns: dict[str, list[tuple[str, pa.DataType]]] = {
        "images": [
            ("split", pa.string()),
            ("source", pa.string()),
            ("face_index", pa.int32()),
            ("image", PICTURE),
            ("kind", pa.string()),
            ("edit_name", pa.string()),
            ("edit_strength", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("source_width", pa.int32()),
            ("source_height", pa.int32()),
            ("source_bytes", pa.int64()),
            ("source_sha256", pa.string()),
            ("quad", pa.list_(pa.float64(), 8)),
            ("note", pa.string()),
        ],
        "latents": [("embedder", pa.string()), ("space", pa.string()), ("latent", latent)],
        "masks": [
            ("mask", PICTURE),
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
            ("base", pa.int32()),
            ("cells", pa.binary()),
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
            ("source_bytes", pa.int64()),
            ("source_sha256", pa.string()),
            ("stage", pa.string()),
            ("error_class", pa.string()),
            ("message", pa.string()),
        ],
    }
    keys = [("image_id", pa.string()), ("shard", pa.int32())]
    return pa.schema([*keys, *columns[table]])


def described(table: str, info: RunInfo) -> pa.Schema:
    """Return the schema of a table with metadata.

    The key `huggingface` holds the features for `datasets`, the key `dhr_batch` facts about the
    run.
    """
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
    if kind == PICTURE:
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
