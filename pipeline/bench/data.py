"""The data of a benchmark's runs by method: metrics of images, costs and provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

from dhr_batch.pipeline.bench.matrix import Cell
from dhr_batch.pipeline.bench.run import Benchmark
from dhr_batch.pipeline.report import data as report_data
from dhr_batch.pipeline.report.data import MIN_IN_DOMAIN_FACE, RunData
from dhr_batch.pipeline.runs.parts import Parts
from dhr_batch.pipeline.runs.reading import RunRecords
from dhr_batch.pipeline.tables.records import picture

if TYPE_CHECKING:
    import pandas as pd

# The tables that `dhr-batch render` needs.
RENDERED_FROM = ("latents", "masks", "deltas")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of the benchmark.

    Attributes:
        cell: The run in the matrix.
        parts: Its tables.
        data: Its data.
        base: The run that it begins from, if there is one.
    """

    cell: Cell
    parts: Parts
    data: RunData
    base: FinishedRun | None = None

    @property
    def fingerprint(self) -> str:
        """A digest of everything that the rows depend on, except the images."""
        content = json.dumps(
            self.data.plan.fingerprint.to_json(), sort_keys=True, ensure_ascii=False
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def models(self) -> dict[str, str]:
        """The sha256 of each model that this run or its base used, or `not recorded`."""
        recorded = self.data.plan.fingerprint.models
        names = {*self.data.models, *(self.base.data.models if self.base else ())}
        return {name: recorded.get(name, "not recorded") for name in sorted(names)}

    @cached_property
    def masks(self) -> dict[str, tuple[float, str]]:
        """The in-domain share of the pixels of each image, and a digest of its mask.

        The digest is of the pixels, as the bytes of a PNG depend on the processor that wrote it.
        """
        columns = ("image_id", "kind", "mask", "area_fraction")
        return {
            row["image_id"]: (
                row["area_fraction"],
                hashlib.sha256(picture(row["mask"]).tobytes()).hexdigest(),
            )
            for row in report_data.read_rows(self.parts, "masks", columns)
            if row["kind"] == "in_domain"
        }

    def seconds(self) -> dict[str, dict[int, float]]:
        """Return the seconds per image that was computed, by stage and shard.

        For stages that this run did not compute, they are the seconds of the same images in the
        base, whose shards may be different.
        """
        shards = self.data.plan.shards
        found: dict[str, dict[int, float]] = {}
        if self.base:
            by_image = self.base.data.plan.shard_of()
            for stage, spent in self.base.seconds().items():
                for shard, ids in enumerate(shards):
                    times = [spent[by_image[i]] for i in ids if by_image.get(i) in spent]
                    if times:
                        found.setdefault(stage, {})[shard] = sum(times) / len(times)
            found = {s: v for s, v in found.items() if s not in self._own_stages}
        for shard, manifest in self.data.shards.items():
            for stage, seconds in manifest.stage_seconds.items():
                if computed := manifest.computed(stage):
                    found.setdefault(stage, {})[shard] = seconds / computed
        return found

    def clocks(self) -> dict[tuple[str, ...], dict[str, float]]:
        """Return what `turns` has measured, per computed image, by the images of each shard.

        For stages that this run did not compute, it is what was measured of these images in the
        base, if anything was.
        """
        before = self.base.clocks() if self.base else {}
        by_image = {i: clocks for ids, clocks in before.items() for i in ids}
        found = {}
        for number, manifest in self.data.shards.items():
            ids = tuple(self.data.plan.shards[number])
            earlier = [by_image[i] for i in ids if i in by_image]
            # A shard whose images have failed took no time in later stages.
            if manifest.clocked and manifest.ok and (not before or len(earlier) == len(ids)):
                means = {key: fmean(own[key] for own in earlier) for key in next(iter(earlier), ())}
                found[ids] = means | {
                    # Keys end with the stage.
                    key: value / manifest.computed(key.rpartition("_")[2])
                    for key, value in manifest.clocked.items()
                }
        return found

    @property
    def _own_stages(self) -> set[str]:
        return {s for m in self.data.shards.values() for s in m.stage_seconds}

    def peak(self, where: str) -> int | None:
        """Return the peak memory of a worker of this run or its base, in bytes.

        Args:
            where: `host` or `gpu`.
        """
        runs = [self.data, *([self.base.data] if self.base else [])]
        peaks = [m.memory_peak.get(where) for d in runs for m in d.shards.values()]
        return max((p for p in peaks if p), default=None)

    def bytes_of(self, tables: Sequence[str] | None = None) -> list[tuple[int, int]]:
        """Return the bytes of files and the number of images of each shard with images.

        Args:
            tables: The tables to count; None for all.
        """
        found = []
        for manifest in self.data.shards.values():
            files = manifest.files.items()
            sizes = [facts.bytes for table, facts in files if tables is None or table in tables]
            if manifest.ok:
                found.append((sum(sizes), manifest.ok))
        return found


def method_name(embedder: str, refiner: str) -> str:
    """Return the name of a method in tables."""
    return f"{embedder} / {refiner}"


@dataclass(frozen=True)
class Method:
    """An embedder with a refiner.

    Attributes:
        embedder: The name of the embedder.
        refiner: The name of the refiner.
        runs: One run for each seed.
    """

    embedder: str
    refiner: str
    runs: Sequence[FinishedRun]

    @property
    def name(self) -> str:
        return method_name(self.embedder, self.refiner)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """The columns image_id, stage, metric and value, with the means over seeds."""
        import pandas as pd

        columns = ["image_id", "stage", "metric", "value"]
        frames = [run.data.metrics[columns] for run in self.runs]
        if len(frames) == 1:
            return frames[0]
        joined = pd.concat(frames).astype({name: object for name in columns[:3]})
        grouped = joined.groupby(columns[:3], sort=False)["value"].agg(["mean", "count"])
        # A mean over only some of the seeds could not be compared with the others.
        complete = grouped[grouped["count"] == len(frames)]
        return complete["mean"].rename("value").reset_index()

    @cached_property
    def shares(self) -> dict[str, dict[str, float]]:
        """The in-domain share of each image and of its face, with the means over seeds."""
        pictures = [{i: share for i, (share, _) in run.masks.items()} for run in self.runs]
        faces = [run.data.in_domain_face for run in self.runs]
        return {
            key: {i: fmean(own[i] for own in found) for i in set(found[0]).intersection(*found)}
            for key, found in (("in_domain", pictures), ("in_domain_face", faces))
        }


@dataclass(frozen=True)
class Compared:
    """The methods on one dataset, and the images that all of them have.

    Attributes:
        dataset: The name of the dataset.
        planned: The number of planned images.
        methods: The methods.
        counted: The images that all methods have, in plan order. Results are of these images.
        failed: Why images have no rows, by image and method.
        excluded: For each image, the methods whose mask leaves less than 40 % of its face
            in-domain.
        generator: The label of the generator if the benchmark lists generators, else "".
        needs: How to get the missing models of each method that was not computed, by the names of
            the method and of the model.
        lacks: The same for each metric that no method has, by the key of its column.
        rows: The names of the methods and of those that need models, in the order of the benchmark.
    """

    dataset: str
    planned: int
    methods: Sequence[Method]
    counted: Sequence[str]
    failed: Mapping[str, Mapping[str, str]]
    excluded: Mapping[str, Sequence[str]]
    generator: str = ""
    needs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lacks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rows: Sequence[str] = ()

    @property
    def title(self) -> str:
        """The dataset, and the generator if there are several."""
        return ", ".join(filter(None, (self.dataset, self.generator)))

    @property
    def random_weights(self) -> bool:
        """Whether a network of any run is untrained."""
        return any(run.data.random_weights for method in self.methods for run in method.runs)

    @property
    def made_by(self) -> dict[str, list[str]]:
        """The models that computed each metric of the refined pictures, as in the tables."""
        found: dict[str, dict[str, None]] = {}
        for method in self.methods:
            for run in method.runs:
                rows = run.data.metrics[run.data.metrics["stage"] == "refined"]
                pairs = rows[["metric", "model"]].drop_duplicates()
                for metric, model in zip(pairs["metric"], pairs["model"], strict=True):
                    found.setdefault(str(metric), {})[str(model)] = None
        return {metric: list(models) for metric, models in sorted(found.items())}

    @cached_property
    def same_masks(self) -> bool:
        """Whether all methods have the same in-domain masks."""
        runs = [run for method in self.methods for run in method.runs]
        return all(
            run.masks.get(i) == runs[0].masks.get(i) for run in runs[1:] for i in self.counted
        )

    def metrics(self, method: Method) -> pd.DataFrame:
        """Return the metrics of a method for the counted images."""
        return method.metrics[method.metrics["image_id"].isin(self.counted)]


def load(benchmark: Benchmark, failed: Mapping[str, str]) -> list[Compared]:
    """Load the runs of a benchmark by dataset and generator.

    Args:
        benchmark: The benchmark.
        failed: The runs without complete tables. Methods with such a run are left out, and so are
            datasets without any method. Methods whose models are missing are named instead.
    """
    runs: dict[str, FinishedRun] = {}
    for cell in benchmark.cells:
        if cell.name not in failed and not cell.needs:
            parts = Parts(RunRecords(benchmark.place(cell.name)))
            data, base = report_data.load(parts), runs.get(cell.base)
            runs[cell.name] = FinishedRun(cell, parts, data, base)
    found = []
    for dataset, generator in dict.fromkeys((c.dataset, c.generator) for c in benchmark.cells):
        place = (dataset, generator)
        cells = [c for c in benchmark.cells if (c.dataset, c.generator) == place]
        methods = list(_methods(cells, runs))
        if methods or any(cell.needs for cell in cells):
            found.append(_compared(benchmark, cells, methods))
    return found


def _methods(cells: Sequence[Cell], runs: Mapping[str, FinishedRun]) -> Iterator[Method]:
    for embedder, refiner in dict.fromkeys((c.embedder, c.refiner) for c in cells):
        own = [c.name for c in cells if (c.embedder, c.refiner) == (embedder, refiner)]
        if all(name in runs for name in own):
            yield Method(embedder, refiner, [runs[name] for name in own])


def _compared(benchmark: Benchmark, cells: Sequence[Cell], methods: Sequence[Method]) -> Compared:
    failed: dict[str, dict[str, str]] = {}
    excluded: dict[str, list[str]] = {}
    for method in methods:
        for run in method.runs:
            # Images that failed in the base are not planned in a run that begins from it.
            for source in (run.base, run):
                for row in source.data.quarantine if source else ():
                    why = f"{row['stage']}: {row['error_class']}"
                    failed.setdefault(row["image_id"], {})[method.name] = why
            for image_id in run.data.excluded():
                excluded.setdefault(image_id, []).append(method.name)
    ids = methods[0].runs[0].data.image_ids if methods else []
    everywhere = [set(run.data.image_ids) for method in methods for run in method.runs]
    counted = [
        i
        for i in ids
        if i not in failed and i not in excluded and all(i in own for own in everywhere)
    ]
    names = dict.fromkeys(method_name(c.embedder, c.refiner) for c in cells)
    needs = {method_name(c.embedder, c.refiner): c.needs for c in cells if c.needs}
    present = {method.name for method in methods}
    return Compared(
        benchmark.names[cells[0].dataset],
        benchmark.sizes.get(cells[0].dataset, len(ids)),
        methods,
        counted,
        failed,
        excluded,
        cells[0].generator,
        needs,
        {key: lacking for c in cells for key, lacking in c.lacks.items()},
        [name for name in names if name in present or name in needs],
    )


EXCLUDED = f"less than {MIN_IN_DOMAIN_FACE:.0%} of the face in-domain"
