"""Read the results of a finished or unfinished run: codes, pictures, masks, metrics and deltas."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dhr_batch.pipeline import notebook
from dhr_batch.pipeline.errors import NoRun, Refused
from dhr_batch.pipeline.runs import render
from dhr_batch.pipeline.runs.names import part
from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.tables.records import picture, record_of, tensors
from dhr_batch.pipeline.units import counted, edit_title
from dhr_batch.stages import faces
from dhr_batch.stages.device import Kind
from dhr_batch.stages.record import Record

if TYPE_CHECKING:
    import pandas as pd

    from dhr_batch.stages.context import Context

# Images and pictures of each that notebooks show.
_IMAGES_SHOWN, _PICTURES_SHOWN = 4, 8


def open(path: str | Path) -> Run:
    """Open a run.

    Args:
        path: The folder of the run, or its URL in an object store.

    Raises:
        NoRun: If there is no run.
    """
    records = RunRecords(path)
    return Run(records, records.started_plan())


class Run:
    """The committed rows of a run. Every attribute reads its table when it is first used.

    Files that do not match the checksums in their manifests raise `runs.parts.Damaged`.

    Attributes:
        storage: The place of the run.
        parts: Its tables.
        stored: Its plan: settings, fingerprint, and the image ids of each shard.
        device: The device that renders, `cuda`, `mps`, `xpu` or `cpu`; set it before the first
            render. By default `cuda` if there is one, else `cpu`.
        allow_code: Whether renders may import code outside of dhr-batch that the run names.
    """

    device: Kind | None = None
    allow_code = False

    def __init__(self, records: RunRecords, stored: StoredPlan) -> None:
        self.storage, self.stored, self.parts = records.storage, stored, Parts(records)

    def __repr__(self) -> str:
        return f"Run({self.storage.place!r}, {counted(len(self.ids), 'image')})"

    def _repr_html_(self) -> str:
        """Return pictures of the first images, for notebooks."""
        shown = [self._shown(image_id) for image_id in self.ids[:_IMAGES_SHOWN]]
        return notebook.table(shown, [repr(self)])

    def _shown(self, image_id: str) -> dict[str, Image.Image]:
        rows = self._rows("images", image_id)
        titles = [
            edit_title(row["edit_name"], row["edit_strength"])
            if row["kind"] == "edit"
            else row["kind"]
            for row in rows
        ]
        return {
            title: Image.fromarray(picture(row["image"]))
            for title, row in list(zip(titles, rows, strict=True))[:_PICTURES_SHOWN]
        }

    @cached_property
    def plan(self) -> dict[str, Any]:
        """The content of `plan.json`, as dictionaries and lists."""
        plan = self.stored.to_json()
        return plan | {"shards": list(plan["shards"])}

    def table(self, name: str, columns: Sequence[str] | None = None, **equal: Any) -> pa.Table:
        """Read a table.

        Args:
            name: The name of the table.
            columns: The columns to read; by default all.
            **equal: Read only rows whose column of this name has this value.

        Raises:
            NoRun: If the run has no such table.
            Damaged: If a file of the table is damaged.
        """
        parts = self.parts.table(name)
        if not parts:
            tables, place = ", ".join(self.storage.tables()) or "none", self.storage.place
            raise NoRun(place, f"it has no table {name!r}", f"choose from: {tables}")
        return self._read(parts, columns, equal)

    def _read(
        self, parts: list[str], columns: Sequence[str] | None, equal: Mapping[str, Any]
    ) -> pa.Table:
        keep = None
        for column, value in equal.items():
            test = pc.field(column) == value
            keep = test if keep is None else keep & test
        with self.parts.reading(parts[0] if len(parts) == 1 else parts[0].partition("/")[0]):
            data = self.parts.dataset(parts)
            return data.to_table(columns=list(columns) if columns else None, filter=keep)

    @cached_property
    def ids(self) -> list[str]:
        """The images with rows, in the order of the plan. Images in quarantine are not included.

        With `align.face: all`, each face of a photograph is an image: the largest has the id of the
        photograph, the next one this id and `#1`, and so on.
        """
        return self.table("latents", ["image_id"])["image_id"].to_pylist()

    @cached_property
    def latents(self) -> dict[str, np.ndarray]:
        """The W+ code of each image, float32 [L, 512]."""
        table = self.table("latents", ["image_id", "latent"])
        codes = _vectors(table["latent"])
        return dict(zip(table["image_id"].to_pylist(), codes, strict=True))

    @cached_property
    def masks(self) -> dict[str, np.ndarray]:
        """The in-domain mask of each image, bool [R, R]."""
        return self._masks("in_domain")

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """The CelebAMask-HQ class of each pixel of each image, uint8 [R, R]."""
        return self._masks("labels")

    def _masks(self, kind: str) -> dict[str, np.ndarray]:
        table = self.table("masks", ["image_id", "mask"], kind=kind)
        return {row["image_id"]: picture(row["mask"]) for row in table.to_pylist()}

    def images(
        self, kind: str = "refined", ids: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Read pictures.

        Args:
            kind: `aligned`, `inverted` or `refined`.
            ids: The images to return; by default all.

        Returns:
            The picture of each image, uint8 [R, R, 3].

        Raises:
            Refused: There are no pictures of this kind.
        """
        if kind not in (kinds := ("aligned", "inverted", "refined")):
            raise Refused(
                f"pictures of kind {kind!r}",
                f"the kinds are {', '.join(kinds)}",
                "choose one of these; `edited` reads edits",
            )
        rows = self.table("images", ["image_id", "image"], kind=kind).to_pylist()
        wanted = None if ids is None else set(ids)
        return {
            row["image_id"]: picture(row["image"])
            for row in rows
            if wanted is None or row["image_id"] in wanted
        }

    def edited(self, name: str, strength: float) -> dict[str, np.ndarray]:
        """Return the picture of an edit for each image, uint8 [R, R, 3].

        Raises:
            Refused: The run has images, but not this edit.
        """
        table = self.table("images", ["image_id", "image"], edit_name=name, edit_strength=strength)
        if not table.num_rows and self.ids:
            edits = self.table("images", ["edit_name", "edit_strength"], kind="edit").to_pylist()
            found = dict.fromkeys(edit_title(e["edit_name"], e["edit_strength"]) for e in edits)
            raise Refused(
                self.storage.place,
                f"it has no edit {edit_title(name, strength)}",
                f"choose from: {', '.join(found) or '(none)'}; `render` makes others",
            )
        return {row["image_id"]: picture(row["image"]) for row in table.to_pylist()}

    def metric_names(self) -> set[str]:
        """Return the names of the metrics of the first shard that has rows."""
        for shard in self.parts.table("metrics"):
            metrics = self._read([shard], ["metric"], {})["metric"]
            if names := pc.unique(metrics).to_pylist():
                return set(names)
        return set()

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """All metrics, one value per row: image_id, stage, metric, value, model."""
        columns = ["image_id", "stage", "metric", "value", "model"]
        return self.table("metrics", columns).to_pandas()

    def metrics_wide(self) -> pd.DataFrame:
        """Return the metrics with one row per image and stage, and one column per metric."""
        return self.metrics.pivot_table(
            index=["image_id", "stage"], columns="metric", values="value", sort=False
        )

    @cached_property
    def edits(self) -> pd.DataFrame:
        """One row per edited picture: edit, strength, latent float32 [L, 512], effect as a dict."""
        table = self.table("edits")
        frame = table.drop_columns(["latent", "effect"]).to_pandas()
        frame["latent"] = list(_vectors(table["latent"]))
        frame["effect"] = [{e["key"]: e["value"] for e in es} for es in table["effect"].to_pylist()]
        return frame

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """The images that failed: image_id, source, stage, error_class, message."""
        return self.table("quarantine").to_pandas()

    def delta(self, image_id: str) -> dict[str, np.ndarray]:
        """Return what the refinement of an image changed in the generator.

        Returns:
            For each refined weight its offset from the published weight, float32. Under `feature`
            the output of the layer that the refined feature replaces; cells that the image does
            not depend on are 0. Further arrays of the refiner are under their own names. Empty if
            the refinement changed nothing. Weights and features are restored with the precision of
            `codec`.

        Raises:
            KeyError: If the run has stored no deltas of the image.
            ValueError: If a row cannot be decoded. The message names the tensor.
        """
        return tensors(image_id, self._delta_rows(image_id))

    def _delta_rows(self, image_id: str) -> list[dict[str, Any]]:
        rows = self._rows("deltas", image_id)
        has_table = self._part("deltas", image_id) in self._files
        if not rows and not (has_table and self._rows("latents", image_id)):
            stored_none = self.stored.settings.store_deltas == "none"
            why = ": the run was made with store_deltas=none" if stored_none else ""
            raise KeyError(f"no deltas of {image_id!r} in {self.storage.place}{why}")
        return rows

    def record(self, image_id: str) -> Record:
        """Return the stored embedding and refinement.

        These are the fields `latent`, `mask`, `labels`, `delta`, `feature` and `state`.

        Raises:
            KeyError: If rows of the image are missing.
        """
        codes = self._rows("latents", image_id)
        if not codes:
            raise KeyError(f"no rows of {image_id!r} in {self.storage.place}")
        masks = self._rows("masks", image_id)
        tables = {"latents": codes, "masks": masks, "deltas": []}
        if self.stored.settings.member("refine") != "none":
            tables["deltas"] = self._delta_rows(image_id)
        return record_of(image_id, tables)

    @cached_property
    def networks(self) -> Context:
        """The generator and the refiner of the run (see `runs.render.context`)."""
        return render.context(self.stored, self.storage.place, self.device, self.allow_code)

    def render(self, image_id: str, edits: Mapping[str, float] | Sequence[str] = ()) -> Record:
        """Render the refined picture of an image again, or edits of it.

        This takes one forward pass for each picture (one and a half for edits that follow the
        motion, two for pictures of `hfgi` and edits of `sam`) and no optimisation.

        Args:
            image_id: The image.
            edits: The strength of each direction, a shipped name or a file. Each direction gives a
                picture of its own. Or texts such as `smile=2` and `smile=1+age=10`, one for each
                picture.

        Returns:
            A record with `edits`, or with `refined` if no edits are given.

        Raises:
            Refused: If the image or a direction is unknown, or the weights have changed.
            KeyError: If rows of the image are missing.
        """
        choices = edits.items() if isinstance(edits, Mapping) else edits
        make = render.renderer(self.networks, choices, self.stored.rules)
        return make(self.record(*self.select([image_id])))

    def select(self, images: Sequence[str]) -> list[str]:
        """Check that all images have rows, and return their ids.

        Raises:
            Refused: If an image has none. The message names similar ids.
        """
        for image_id in images:
            if not self._rows("latents", image_id):
                ids = self.ids
                near = difflib.get_close_matches(image_id, ids, 3, 0.4) or ids[:5]
                raise Refused(
                    self.storage.place,
                    f"it has no rows of image {image_id!r}",
                    f"choose from its {len(ids)} images, such as: {', '.join(near) or 'none'}",
                )
        return list(images)

    def planned(self, image_id: str | None) -> str:
        """Return the image of the plan that a row belongs to: of a further face its photograph.

        A row of a damaged part may have no id, and then belongs to none.
        """
        return faces.parsed(image_id or "", self._shards)[0]

    @cached_property
    def _shards(self) -> dict[str, int]:
        return self.stored.shard_of()

    def _rows(self, name: str, image_id: str, **equal: Any) -> list[dict[str, Any]]:
        """Read the rows of one image from the file of its shard; [] if there is no such file."""
        key = self._part(name, image_id)
        if key not in self._files:
            return []
        return self._read([key], None, {"image_id": image_id, **equal}).to_pylist()

    def _part(self, table: str, image_id: str) -> str:
        return part(table, self._shards.get(self.planned(image_id), -1))

    @cached_property
    def _files(self) -> set[str]:
        return set(self.storage.sizes())


def _vectors(column: pa.ChunkedArray) -> np.ndarray:
    length, width = column.type.list_size, column.type.value_type.list_size
    flat = [np.asarray(chunk.flatten().flatten()) for chunk in column.chunks]
    joined = np.concatenate(flat) if flat else np.empty(0, np.float32)
    return joined.reshape(-1, length, width)
