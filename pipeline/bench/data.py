"""The runs of a benchmark as methods: their metrics per image, costs and provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dhr_batch.pipeline.bench.matrix import Cell
from dhr_batch.pipeline.bench.run import Benchmark
from dhr_batch.pipeline.report import data as report_data
from dhr_batch.pipeline.report.data import MIN_IN_DOMAIN_FACE, RunData
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect

if TYPE_CHECKING:
    import pandas as pd

# Tables that `dhr-batch render` needs to make an edit.
RENDERED_FROM = ("latents", "masks", "deltas")


@dataclass(frozen=True)
class Made:
    """A finished run of the benchmark. base: the run that it begins from, if it does."""

    cell: Cell
    storage: Storage
    data: RunData
    base: Made | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of everything that the rows depend on, apart from the images."""
        content = json.dumps(
            self.data.plan.fingerprint.to_json(), sort_keys=True, ensure_ascii=False
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def models(self) -> dict[str, str]:
        """Models that were used, here or in the run that this one begins from -> their sha256, as
        far as it is recorded."""
        known = self.data.plan.fingerprint.models
        names = {*self.data.models, *(self.base.data.models if self.base else ())}
        return {name: known.get(name, "not recorded") for name in sorted(names)}

    @cached_property
    def masks(self) -> dict[str, str]:
        """Image -> digest of its in-domain mask."""
        columns = ("image_id", "kind", "mask")
        return {
            row["image_id"]: hashlib.sha256(row["mask"]["bytes"]).hexdigest()
            for row in report_data.read_rows(self.storage, "masks", columns)
            if row["kind"] == "in_domain"
        }

    def seconds(self) -> dict[str, dict[int, float]]:
        """Stage -> shard -> seconds per image. Stages that were taken over took what they did for
        these images in the base, whose shards may be cut elsewhere."""
        shards = self.data.plan.shards
        found: dict[str, dict[int, float]] = {}
        if self.base:
            by_image = self.base.data.plan.shard_of()
            for stage, spent in self.base.seconds().items():
                for shard, ids in enumerate(shards):
                    known = [spent[by_image[i]] for i in ids if by_image.get(i) in spent]
                    if known:
                        found.setdefault(stage, {})[shard] = sum(known) / len(known)
            found = {s: v for s, v in found.items() if s not in self._own_stages}
        for shard, manifest in self.data.shards.items():
            for stage, seconds in manifest.stage_seconds.items():
                if manifest.images:
                    found.setdefault(stage, {})[shard] = seconds / manifest.images
        return found

    def clocks(self) -> dict[tuple[str, ...], dict[str, float]]:
        """Images of a shard -> what `bench_turns` has clocked, per image."""
        shards = self.data.plan.shards
        return {
            tuple(shards[n]): {key: v / len(shards[n]) for key, v in manifest.clocked.items()}
            for n, manifest in self.data.shards.items()
            if manifest.clocked
        }

    @property
    def _own_stages(self) -> set[str]:
        return {s for m in self.data.shards.values() for s in m.stage_seconds}

    def peak(self, where: str) -> int | None:
        """The most bytes that a worker held, `host` or `gpu`, here or in the base."""
        runs = [self.data, *([self.base.data] if self.base else [])]
        peaks = [m.memory_peak.get(where) for d in runs for m in d.shards.values()]
        return max((p for p in peaks if p), default=None)

    def bytes_of(self, tables: Sequence[str] | None = None) -> list[tuple[int, int]]:
        """Of each shard with images: bytes of its files, of these tables or of all, and images."""
        found = []
        for manifest in self.data.shards.values():
            files = manifest.files.items()
            sizes = [facts.bytes for table, facts in files if tables is None or table in tables]
            if manifest.ok:
                found.append((sum(sizes), manifest.ok))
        return found


def method_name(embedder: str, refiner: str) -> str:
    """A method in tables."""
    return f"{embedder} / {refiner}"


@dataclass(frozen=True)
class Method:
    """An embedder with a refiner; one run per seed."""

    embedder: str
    refiner: str
    runs: Sequence[Made]

    @property
    def name(self) -> str:
        return method_name(self.embedder, self.refiner)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """image_id, stage, metric, value: the mean over seeds."""
        import pandas as pd

        columns = ["image_id", "stage", "metric", "value"]
        frames = [run.data.metrics[columns] for run in self.runs]
        if len(frames) == 1:
            return frames[0]
        every = pd.concat(frames).astype({name: object for name in columns[:3]})
        grouped = every.groupby(columns[:3], sort=False)["value"].agg(["mean", "count"])
        # What an image lacks for one seed would otherwise be a mean of other draws.
        whole = grouped[grouped["count"] == len(frames)]
        return whole["mean"].rename("value").reset_index()


@dataclass(frozen=True)
class Compared:
    """The methods on one dataset, and the images that all of them have.

    counted: in plan order. failed: image -> method -> why it has no rows there; excluded: image ->
    methods whose mask leaves less than 40 % of its face in-domain.
    """

    dataset: str
    planned: int
    methods: Sequence[Method]
    counted: Sequence[str]
    failed: Mapping[str, Mapping[str, str]]
    excluded: Mapping[str, Sequence[str]]

    @property
    def random_weights(self) -> bool:
        """Whether a network of any run is untrained."""
        return any(run.data.random_weights for method in self.methods for run in method.runs)

    @property
    def made_by(self) -> dict[str, list[str]]:
        """Metric of the refined pictures -> the models that made it, as the tables name them."""
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
        """Whether all methods have the same in-domain masks; otherwise their parts differ."""
        runs = [run for method in self.methods for run in method.runs]
        return all(
            run.masks.get(i) == runs[0].masks.get(i) for run in runs[1:] for i in self.counted
        )

    def metrics(self, method: Method) -> pd.DataFrame:
        """Of the images that count."""
        return method.metrics[method.metrics["image_id"].isin(self.counted)]


def load(benchmark: Benchmark, failed: Mapping[str, str]) -> list[Compared]:
    """Every dataset of a benchmark. failed: runs that have no complete tables; methods with such a
    run are left out. Datasets without a method are, too."""
    made: dict[str, Made] = {}
    for cell in benchmark.cells:
        if cell.name not in failed:
            storage = connect(benchmark.place(cell.name))
            made[cell.name] = Made(cell, storage, report_data.load(storage), made.get(cell.base))
    found = []
    for dataset in benchmark.matrix.datasets:
        methods = list(_methods(benchmark, dataset, made))
        if methods:
            found.append(_compared(benchmark, dataset, methods))
    return found


def _methods(benchmark: Benchmark, dataset: str, made: Mapping[str, Made]) -> Iterator[Method]:
    cells = [cell for cell in benchmark.cells if cell.dataset == dataset]
    for embedder, refiner in dict.fromkeys((c.embedder, c.refiner) for c in cells):
        own = [c.name for c in cells if (c.embedder, c.refiner) == (embedder, refiner)]
        if all(name in made for name in own):
            yield Method(embedder, refiner, [made[name] for name in own])


def _compared(benchmark: Benchmark, dataset: str, methods: Sequence[Method]) -> Compared:
    failed: dict[str, dict[str, str]] = {}
    excluded: dict[str, list[str]] = {}
    for method in methods:
        for run in method.runs:
            # What a run takes over, it does not even plan where it had failed before.
            for source in (run.base, run):
                for row in source.data.quarantine if source else ():
                    why = f"{row['stage']}: {row['error_class']}"
                    failed.setdefault(row["image_id"], {})[method.name] = why
            for image_id in run.data.excluded():
                excluded.setdefault(image_id, []).append(method.name)
    ids = methods[0].runs[0].data.image_ids
    everywhere = [set(run.data.image_ids) for method in methods for run in method.runs]
    counted = [
        i
        for i in ids
        if i not in failed and i not in excluded and all(i in own for own in everywhere)
    ]
    return Compared(
        benchmark.names[dataset],
        benchmark.sizes.get(dataset, len(ids)),
        methods,
        counted,
        failed,
        excluded,
    )


EXCLUDED = f"less than {MIN_IN_DOMAIN_FACE:.0%} of the face in-domain"
