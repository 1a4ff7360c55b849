"""Read the data of a report from the Parquet tables of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dhr_batch.pipeline.report.pictures import decode, face_share
from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.runs.records import status_file
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.stats import set_distances
from dhr_batch.pipeline.stats.set_distances import SetDistance
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.stages.faces import parsed
from dhr_batch.stages.record import edit_stage

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("image_id", "stage", "metric", "value", "model")
# If less of the face is in-domain, feature modulation may copy its pixels, so the metrics of the
# image would say nothing about the method.
MIN_IN_DOMAIN_FACE = 0.4


@dataclass(frozen=True)
class EditPicture:
    """One edited picture: name and strength of the edit, and the encoded bytes."""

    name: str
    strength: float
    data: bytes

    @property
    def stage(self) -> str:
        """The name of this edit in the metrics table."""
        return edit_stage(self.name, self.strength)


@dataclass
class ImageRow:
    """The pictures of one image.

    Attributes:
        image_id: The image.
        pictures: Encoded pictures by kind, as in the table `images`.
        edits: The edited pictures.
        mask: The encoded in-domain mask.
    """

    image_id: str
    pictures: dict[str, bytes] = field(default_factory=dict)
    edits: list[EditPicture] = field(default_factory=list)
    mask: bytes | None = None


@dataclass(frozen=True)
class RunData:
    """The data of a report, without the pictures, which `rows` reads one image at a time.

    Attributes:
        name: The name of the run.
        plan: Its plan; empty if there is none.
        image_ids: The images in the order of the tables.
        metrics: The table `metrics`, with categorical columns of text.
        quarantine: The rows of the table `quarantine`.
        in_domain_face: The in-domain share of the face by image id, for images whose mask and
            labels are stored and show a face.
        edits: Name and strength of the edited pictures.
        notes: Remarks of the stages by image id.
        shards: Manifests of the committed shards by number.
        throughput: Unix time and total number of computed images, in the order of time.
        distances: Distances between sets of pictures, without the excluded images.
    """

    name: str
    plan: StoredPlan
    image_ids: list[str]
    metrics: pd.DataFrame
    quarantine: list[dict[str, Any]]
    in_domain_face: dict[str, float]
    edits: list[tuple[str, float]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    shards: dict[int, Manifest] = field(default_factory=dict)
    throughput: list[list[float]] = field(default_factory=list)
    distances: list[SetDistance] = field(default_factory=list)

    @property
    def models(self) -> list[str]:
        """Names of the models that the run used."""
        return sorted({m for shard in self.shards.values() for m in shard.models})

    @property
    def random_weights(self) -> bool:
        """Whether the generator is untrained. Then numbers and pictures have no meaning."""
        labelled = any("random weights" in str(model) for model in self.metrics["model"].unique())
        return self.plan.settings.generator == "tiny" or labelled

    @property
    def counted(self) -> str:
        """The number of images with rows as a text, and that of their faces if they have more."""
        planned, faces = self.plan.shard_of(), len(self.image_ids)
        # A row of a damaged part may have no id.
        images = len({parsed(image_id or "", planned)[0] for image_id in self.image_ids})
        more = f"{faces} faces of " if faces > images else ""
        return f"{more}{images} image{'' if images == 1 else 's'}"

    def excluded(self) -> list[str]:
        """Return the images that averages leave out: less than 40 % of the face is in-domain."""
        shares = self.in_domain_face
        return [i for i in self.image_ids if shares.get(i, 1.0) < MIN_IN_DOMAIN_FACE]


def load(run: Storage | Parts) -> RunData:
    """Read the data of a report, without the pictures.

    Raises:
        NoRun: If the place is not a run.
        Damaged: If a table does not match its manifests, or cannot be read.
        CommandError: If a picture is damaged.
    """
    parts = Parts.of(run)
    plan = parts.records.started_plan()
    metrics = _metrics(parts)
    quarantine = list(
        read_rows(parts, "quarantine", ("image_id", "source", "stage", "error_class", "message"))
    )
    listed: dict[str, None] = {}
    edits: dict[tuple[str, float], None] = {}
    notes: dict[str, str] = {}
    for row in read_rows(parts, "images", ("image_id", "edit_name", "edit_strength", "note")):
        listed[row["image_id"]] = None
        if row.get("note"):
            notes[row["image_id"]] = row["note"]
        if row.get("edit_name") is not None:
            edits[row["edit_name"], row["edit_strength"]] = None
    data = RunData(
        name=parts.storage.name,
        plan=plan,
        image_ids=list(listed | dict.fromkeys(metrics["image_id"].unique())),
        metrics=metrics,
        quarantine=quarantine,
        in_domain_face=_face_shares(parts),
        edits=_sorted_edits(edits),
        notes=notes,
        shards=parts.manifests,
        throughput=status_file.throughput(parts.storage),
    )
    found = set_distances.distances(parts, plan.settings.generator, data.excluded())
    return replace(data, distances=found)


def read_rows(run: Storage | Parts, table: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a table, in the order of its files.

    Args:
        run: The run.
        table: Name of the table. It has no rows if it has no finished file.
        columns: Names of columns. Those that the table lacks are left out.

    Raises:
        Damaged: If the table does not match its manifests, or cannot be read.
    """
    parts = Parts.of(run)
    with parts.reading(table):
        if keys := parts.table(table):
            data = parts.dataset(keys)
            names = [name for name in columns if name in data.schema.names]
            for batch in data.to_batches(columns=names, batch_size=64):
                yield from batch.to_pylist()


def rows(run: Storage | Parts, image_ids: Sequence[str]) -> Iterator[ImageRow]:
    """Read the pictures and the mask of each of the given images, one image at a time.

    All masks are read first, a few kB each. Pictures are read one row group at a time.

    Args:
        run: The run.
        image_ids: The images, in the order of the tables.

    Raises:
        Damaged: If a table does not match its manifests, or cannot be read.
    """
    parts, chosen = Parts.of(run), set(image_ids)
    masks = {
        record["image_id"]: record["mask"]["bytes"]
        for record in _rows_of(parts, "masks", ("image_id", "kind", "mask"), chosen)
        if record["kind"] == "in_domain"
    }
    columns = ("image_id", "kind", "image", "edit_name", "edit_strength")
    missing = iter(image_ids)
    found = groupby(_rows_of(parts, "images", columns, chosen), lambda r: str(r["image_id"]))
    for image_id, records in found:
        while (expected := next(missing, image_id)) != image_id:
            yield ImageRow(expected, mask=masks.get(expected))
        yield _row(image_id, records, masks.get(image_id))
    for image_id in missing:
        yield ImageRow(image_id, mask=masks.get(image_id))


def _row(image_id: str, records: Iterator[dict[str, Any]], mask: bytes | None) -> ImageRow:
    row = ImageRow(image_id, mask=mask)
    for record in records:
        data = (record["image"] or {}).get("bytes")
        if data is not None and record["kind"] == "edit":
            row.edits.append(EditPicture(record["edit_name"], record["edit_strength"], data))
        elif data is not None:
            row.pictures[record["kind"]] = data
    return row


def _rows_of(
    parts: Parts, table: str, columns: Sequence[str], image_ids: set[str]
) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of the given images. Only row groups that contain one are read."""
    for key in parts.table(table):
        with parts.open(key) as parquet:
            names = [name for name in columns if name in parquet.schema_arrow.names]
            for group in range(parquet.num_row_groups):
                (ids,) = parquet.read_row_group(group, columns=["image_id"])
                if image_ids.isdisjoint(ids.to_pylist()):
                    continue
                for batch in parquet.iter_batches(16, row_groups=[group], columns=names):
                    for record in batch.to_pylist():
                        if record["image_id"] in image_ids:
                            yield record


def _sorted_edits(edits: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Sort edits by the first appearance of their name, then by strength."""
    names = list(dict.fromkeys(name for name, _ in edits))
    return sorted(edits, key=lambda edit: (names.index(edit[0]), edit[1]))


def _metrics(parts: Parts) -> pd.DataFrame:
    """Read the table `metrics`. With categorical text, a row takes 24 bytes instead of 500."""
    import pandas as pd

    keys = parts.table("metrics")
    if not keys:
        return pd.DataFrame({name: [] for name in METRICS}).astype({"value": "float64"})
    text = [name for name in METRICS if name != "value"]
    with parts.reading("metrics"):
        data = parts.dataset(keys, text)
        return data.to_table(columns=list(METRICS)).unify_dictionaries().to_pandas()


def _face_shares(run: Parts) -> dict[str, float]:
    """Return the in-domain share of the face of each image with a mask, labels and a face."""
    shares: dict[str, float] = {}
    incomplete: dict[str, dict[str, bytes]] = {}
    for record in read_rows(run, "masks", ("image_id", "mask", "kind")):
        image_id = record["image_id"]
        pair = incomplete.setdefault(image_id, {})
        pair[record["kind"]] = record["mask"]["bytes"]
        if {"in_domain", "labels"} <= pair.keys():
            share = face_share(
                decode(pair["in_domain"], f"mask of {image_id!r}"),
                decode(pair["labels"], f"label map of {image_id!r}"),
            )
            if share is not None:
                shares[image_id] = share
            del incomplete[image_id]
    return shares
