"""What a report shows, read from the Parquet tables of one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq

from dhr_batch.pipeline.errors import ReportError
from dhr_batch.pipeline.report.pictures import decode, face_share
from dhr_batch.pipeline.runs import status_file
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.stats import set_distances
from dhr_batch.pipeline.stats.set_distances import SetDistance
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.stages.base import edit_stage

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("image_id", "stage", "metric", "value", "model")
# An almost all-out mask lets feature modulation copy pixels, so such images do not count.
MIN_IN_DOMAIN_FACE = 0.4


@dataclass(frozen=True)
class Edited:
    """One edited picture: its edit, strength and encoded bytes."""

    name: str
    strength: float
    data: bytes

    @property
    def stage(self) -> str:
        """The name of this edit in the metrics table."""
        return edit_stage(self.name, self.strength)


@dataclass
class Row:
    """One image of the run. pictures: kind -> encoded bytes, kinds of the `images` table."""

    image_id: str
    pictures: dict[str, bytes] = field(default_factory=dict)
    edits: list[Edited] = field(default_factory=list)
    mask: bytes | None = None


@dataclass(frozen=True)
class RunData:
    """A run, as far as its report needs it; its pictures are read one after the other, by `rows`.

    metrics: that table, its columns of text categorical. quarantine: all rows of that table.
    in_domain_face: image id -> share of the face that is in-domain, of every image whose mask and
    labels are stored and show a face. edits: (name, strength) of the edited pictures. notes: image
    id -> what its stages remarked. shards: manifests of the committed shards by number.
    throughput: [Unix time, images finished in all], in the order of time.
    distances: between sets of pictures, of the images that count.
    """

    name: str
    plan: dict[str, Any]
    image_ids: list[str]
    metrics: pd.DataFrame
    quarantine: list[dict[str, Any]]
    in_domain_face: dict[str, float]
    edits: list[tuple[str, float]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    shards: dict[int, dict[str, Any]] = field(default_factory=dict)
    throughput: list[list[float]] = field(default_factory=list)
    distances: list[SetDistance] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Names of the models that were used."""
        return sorted({m for shard in self.shards.values() for m in shard.get("models", ())})

    @property
    def random_weights(self) -> bool:
        """Whether the generator has random weights, so that no number or picture means a thing."""
        generator = _find(self.plan, "generator")
        if isinstance(generator, dict):
            generator = generator.get("name")
        labelled = any("random weights" in str(model) for model in self.metrics["model"].unique())
        return generator == "tiny" or labelled

    def excluded(self) -> list[str]:
        """Images with less than 40 % of their face in-domain: they do not count in averages."""
        shares = self.in_domain_face
        return [i for i in self.image_ids if shares.get(i, 1.0) < MIN_IN_DOMAIN_FACE]


def load(run: Storage) -> RunData:
    """Read everything of a run but its pictures.

    Raises ReportError where there is no run or a table cannot be read.
    """
    folder = RunFolder(run)
    plan = folder.plan()
    if plan is None and not run.tables():
        raise ReportError(
            f"{run.place} is not a run: it has neither plan.json nor tables. "
            "Make one with 'dhr-batch run --dataset NAME --out DIR'."
        )
    metrics = _metrics(run)
    quarantine = list(
        read(run, "quarantine", ("image_id", "source", "stage", "error_class", "message"))
    )
    listed: dict[str, None] = {}
    edits: dict[tuple[str, float], None] = {}
    notes: dict[str, str] = {}
    for row in read(run, "images", ("image_id", "edit_name", "edit_strength", "note")):
        listed[row["image_id"]] = None
        if row.get("note"):
            notes[row["image_id"]] = row["note"]
        if row.get("edit_name") is not None:
            edits[row["edit_name"], row["edit_strength"]] = None
    data = RunData(
        name=run.name,
        plan=plan or {},
        image_ids=list(listed | dict.fromkeys(metrics["image_id"].unique())),
        metrics=metrics,
        quarantine=quarantine,
        in_domain_face=_face_shares(run),
        edits=_in_order(edits),
        notes=notes,
        shards=folder.manifests(),
        throughput=status_file.throughput(run),
    )
    return replace(data, distances=_distances(run, data))


def _distances(run: Storage, data: RunData) -> list[SetDistance]:
    try:
        return set_distances.distances(run, data.plan, data.excluded())
    except (OSError, ValueError) as error:
        raise ReportError(f"table 'features' of {run.place} cannot be read: {error}") from error


def read(run: Storage, table: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of a table in the order of its parts; columns that the table lacks are left out.

    A table without a finished part has no rows.
    """
    parts = run.parts(table)
    if not parts:
        return
    try:
        data = ds.dataset(parts, format="parquet", filesystem=run.files)
        names = [name for name in columns if name in data.schema.names]
        for batch in data.to_batches(columns=names, batch_size=64):
            yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise ReportError(f"table {table!r} of {run.place} cannot be read: {error}") from error


def rows(run: Storage, image_ids: Sequence[str]) -> Iterator[Row]:
    """Pictures and masks of these images, which are in the order of the tables, one by one.

    Masks, a few kB each, are read first; pictures row group by row group. An image without any
    picture is an empty Row.
    """
    wanted = set(image_ids)
    masks = {
        record["image_id"]: record["mask"]["bytes"]
        for record in _some_rows(run, "masks", ("image_id", "kind", "mask"), wanted)
        if record["kind"] == "in_domain"
    }
    columns = ("image_id", "kind", "image", "edit_name", "edit_strength")
    missing = iter(image_ids)
    found = groupby(_some_rows(run, "images", columns, wanted), lambda r: str(r["image_id"]))
    for image_id, records in found:
        while (expected := next(missing, image_id)) != image_id:
            yield Row(expected, mask=masks.get(expected))
        yield _row(image_id, records, masks.get(image_id))
    for image_id in missing:
        yield Row(image_id, mask=masks.get(image_id))


def _row(image_id: str, records: Iterator[dict[str, Any]], mask: bytes | None) -> Row:
    row = Row(image_id, mask=mask)
    for record in records:
        data = (record["image"] or {}).get("bytes")
        if data is not None and record["kind"] == "edit":
            row.edits.append(Edited(record["edit_name"], record["edit_strength"], data))
        elif data is not None:
            row.pictures[record["kind"]] = data
    return row


def _some_rows(
    run: Storage, table: str, columns: Sequence[str], image_ids: set[str]
) -> Iterator[dict[str, Any]]:
    """Rows of these images. A row group that has none of them is not read."""
    try:
        for part in run.parts(table):
            with run.files.open_input_file(part) as file, pq.ParquetFile(file) as parquet:
                names = [name for name in columns if name in parquet.schema_arrow.names]
                for group in range(parquet.num_row_groups):
                    (ids,) = parquet.read_row_group(group, columns=["image_id"])
                    if image_ids.isdisjoint(ids.to_pylist()):
                        continue
                    for batch in parquet.iter_batches(16, row_groups=[group], columns=names):
                        for record in batch.to_pylist():
                            if record["image_id"] in image_ids:
                                yield record
    except (OSError, ValueError) as error:
        raise ReportError(f"table {table!r} of {run.place} cannot be read: {error}") from error


def _in_order(edits: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Edits as named first, each from its lowest to its highest strength."""
    names = list(dict.fromkeys(name for name, _ in edits))
    return sorted(edits, key=lambda edit: (names.index(edit[0]), edit[1]))


def _metrics(run: Storage) -> pd.DataFrame:
    """The metrics table. As dictionaries a row takes half a kilobyte, like this 24 bytes."""
    import pandas as pd

    parts = run.parts("metrics")
    if not parts:
        return pd.DataFrame({name: [] for name in METRICS}).astype({"value": "float64"})
    text = [name for name in METRICS if name != "value"]
    layout = ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(dictionary_columns=text))
    try:
        data = ds.dataset(parts, format=layout, filesystem=run.files)
        return data.to_table(columns=list(METRICS)).unify_dictionaries().to_pandas()
    except (OSError, ValueError) as error:
        raise ReportError(f"table 'metrics' of {run.place} cannot be read: {error}") from error


def _face_shares(run: Storage) -> dict[str, float]:
    shares: dict[str, float] = {}
    waiting: dict[str, dict[str, bytes]] = {}
    for record in read(run, "masks", ("image_id", "mask", "kind")):
        image_id = record["image_id"]
        pair = waiting.setdefault(image_id, {})
        pair[record["kind"]] = record["mask"]["bytes"]
        if {"in_domain", "labels"} <= pair.keys():
            share = face_share(
                decode(pair["in_domain"], f"mask of {image_id!r}"),
                decode(pair["labels"], f"label map of {image_id!r}"),
            )
            if share is not None:
                shares[image_id] = share
            del waiting[image_id]
    return shares


def _find(tree: Any, key: str) -> Any:
    """First value of `key` in nested dicts, outer levels first."""
    level = [tree]
    while level:
        for node in level:
            if isinstance(node, dict) and key in node:
                return node[key]
        level = [v for node in level if isinstance(node, dict) for v in node.values()]
    return None
