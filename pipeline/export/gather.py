"""Find the pictures of a run that an export may have."""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.export.filters import Filters
from dhr_batch.pipeline.export.pictures import Picture
from dhr_batch.pipeline.picture_names import edit_labels
from dhr_batch.pipeline.runs.results import Run
from dhr_batch.stages.measure.face_scores import SCORE, effect_score
from dhr_batch.stages.record import edit_stage

# The kind in the table `images` of each kind of exported picture.
KINDS = {"edit": "edit", "refined": "refined", "source": "aligned"}


@dataclass
class Gathered:
    """The pictures that pass.

    Attributes:
        parts: Pictures by the file of the table `images` that contains them, in its order.
        dropped: Number of pictures that do not pass, by reason.
        images: Number of images that have rows.
    """

    parts: dict[str, list[Picture]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    images: int = 0

    def pictures(self) -> Iterable[Picture]:
        """Iterate over all pictures."""
        return (picture for part in self.parts.values() for picture in part)

    def keep(self, passes: Mapping[Picture, Any] | set[Picture]) -> None:
        """Drop all pictures that are not in `passes`."""
        self.parts = {k: [p for p in part if p in passes] for k, part in self.parts.items()}


def measured_identity(run: Run) -> str | None:
    """Return the network of the label `identity`, the first one in the settings of the run."""
    names = run.stored.settings.section("measure").get("identity") or ()
    names = [names] if isinstance(names, str) else names
    return next((name for name in names if name != "none"), None)


def gather(run: Run, kinds: Iterable[str], filters: Filters) -> Gathered:
    """Collect the pictures that pass. Pixels are not read.

    Args:
        run: The run.
        kinds: Keys of `KINDS`.
        filters: The conditions.

    Returns:
        Pictures that were not asked for (`Filters.chooses`) do not count as dropped.

    Raises:
        Refused: If a filter names an edit, strength or metric that the run does not have.
    """
    network = measured_identity(run)
    if filters.min_identity is not None and network is None:
        raise Refused(
            "--min-identity",
            f"{run.storage.place} did not measure identity, so every picture would be dropped",
            "run again with measure.identity=dlib, or leave it out",
        )
    identity = f"identity_{network}_cosine"
    stored = [KINDS[kind] for kind in kinds]
    found, edits, metrics = Gathered(), set[tuple[str, float]](), set[str]()
    run.parts.table("metrics")
    for key in run.parts.table("images"):
        values = _metrics(run, key.replace("images/", "metrics/", 1), metrics)
        passed = []
        rows = _rows(run, key, stored)
        for row in rows:
            picture, known = _picture(row, values, identity, metrics)
            if picture.edit:
                edits.add((picture.edit, picture.strength))
                if not filters.chooses(picture.edit, picture.strength):
                    continue
            reason = filters.reason(picture, known)
            if reason is None:
                passed.append(picture)
            else:
                found.dropped[reason] += 1
        found.images += len({run.planned(row["image_id"]) for row in rows})
        found.parts[key] = passed
    filters.require(edits, metrics)
    # The names of classes do not depend on the filters.
    names = edit_labels(edits)
    for picture in found.pictures():
        picture.label = names.get((picture.edit, picture.strength), picture.kind)
    return found


def _rows(run: Run, key: str, kinds: list[str]) -> list[dict[str, Any]]:
    columns = ["image_id", "source", "kind", "edit_name", "edit_strength"]
    with run.parts.open(key) as file:
        return file.read(columns=columns).filter(pc.field("kind").isin(kinds)).to_pylist()


def _metrics(run: Run, key: str, seen: set[str]) -> dict[tuple[str, str], dict[str, float]]:
    """Return the finite metrics of a file by image and stage. Adds their names to `seen`."""
    with run.parts.open(key) as file:
        table = file.read(columns=["image_id", "stage", "metric", "value"])
    seen.update(pc.unique(table["metric"]).to_pylist())
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for image_id, stage, metric, value in zip(*(c.to_pylist() for c in table.columns), strict=True):
        if value is not None and math.isfinite(value):
            found[image_id, stage][sys.intern(metric)] = value
    return found


def _picture(
    row: Mapping[str, Any],
    values: Mapping[tuple[str, str], Mapping[str, float]],
    identity: str,
    measured: set[str],
) -> tuple[Picture, Mapping[str, float]]:
    """Return a picture and its metrics. measured: names of all metrics."""
    image_id = row["image_id"]
    kind = next(kind for kind, stored in KINDS.items() if stored == row["kind"])
    edit, strength = row["edit_name"] or "", row["edit_strength"] or 0.0
    stage = edit_stage(edit, strength) if kind == "edit" else kind
    metrics = values.get((image_id, stage), {})
    effect = 0.0 if kind == "source" else None
    score = effect_score(edit, measured)
    before = values.get((image_id, "source"), {})
    if score in metrics and score in before:
        effect = metrics[score] - before[score]
    picture = Picture(
        image_id=image_id,
        source=row["source"],
        kind=kind,
        edit=sys.intern(edit),
        strength=strength,
        effect=effect,
        identity=1.0 if kind == "source" else metrics.get(identity),
        scores={name: value for name, value in metrics.items() if name.startswith(SCORE)},
        before=before,
    )
    return picture, metrics
