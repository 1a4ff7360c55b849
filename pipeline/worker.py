"""The work on one shard: read files, run the stages, write the tables. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dhr_batch.pipeline import crash, models, sources
from dhr_batch.pipeline.commit import sha256, staging
from dhr_batch.pipeline.config import Config
from dhr_batch.pipeline.plan import Shard
from dhr_batch.pipeline.schemas import RunInfo
from dhr_batch.pipeline.sources import Item
from dhr_batch.pipeline.storage import connect
from dhr_batch.pipeline.table_file import TableFile
from dhr_batch.pipeline.tables import rows_of
from dhr_batch.stages import registry
from dhr_batch.stages.base import Context, Record, Stage


class NoGPU(RuntimeError):
    """A worker that was promised a GPU does not see one."""


@dataclass(frozen=True)
class Settings:
    """What a worker is told. config: resolved; out: folder or URL of the run."""

    config: Config
    aligned: bool
    split: str
    gpu: bool
    out: str
    metadata: dict[str, Any] = field(default_factory=dict)


class Worker:
    """Builds the stages once, then runs shards. One per process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._events: deque[dict[str, Any]] = deque()
        self._used: set[str] = set()

    def setup(self) -> dict[str, Any]:
        """Load all networks. Returns facts about the generator that the driver plans with.

        Raises NoGPU, and whatever a stage raises for a missing model or a wrong option.
        """
        import torch

        config = self.settings.config
        if self.settings.gpu and not torch.cuda.is_available():
            raise NoGPU("a GPU worker sees no CUDA device: check the driver, or use --gpus 0")
        torch.set_num_threads(config.threads)
        context = Context(
            device="cuda" if self.settings.gpu else "cpu",
            generator=config.generator,
            models=self._model,
            seed=config.seed,
            aligned=self.settings.aligned,
        )
        self.stages = list(_build(config))
        for stage in self.stages:
            stage.setup(context)
        generator = context.network("generator", config.generator)
        self.info = run_info(config, generator.num_ws, self.settings.metadata)
        names = [name for name in generator.weight_names() if not name.startswith("mapping.")]
        return {
            "device": torch.cuda.get_device_name() if self.settings.gpu else "CPU",
            "resolution": generator.resolution,
            "rows": generator.num_ws,
            "weights": sum(generator.weight(name).numel() for name in names),
            "feature": _feature_size(generator),
        }

    def _model(self, name: str) -> Path:
        self._used.add(name)
        return models.path(name)

    def events(self) -> list[dict[str, Any]]:
        """What has happened since the last call, for the live display."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def run_shard(self, shard: Shard, attempt: str) -> dict[str, Any]:
        """Run all stages on a shard and stage its tables under the name of `attempt`.

        Returns the receipt: files with rows, bytes and sha256, and how many images ended where.
        Raises StorageError where the place of the run does not take the files.
        """
        with connect(self.settings.out).stage(staging(attempt)) as folder:
            return self._tables(shard, attempt, folder)

    def _tables(self, shard: Shard, attempt: str, folder: Path) -> dict[str, Any]:
        """Write the tables of a shard; batches are cut in plan order, the same in each attempt."""
        files = {t: TableFile(folder / f"{t}.parquet", t, self.info) for t in self.info.tables}
        started, size = time.monotonic(), self.settings.config.batch_size
        seconds: defaultdict[str, float] = defaultdict(float)
        errors: Counter[str] = Counter()
        for first in range(0, len(shard.items), size):
            began = time.monotonic()
            records = self._stages(shard, first, shard.items[first : first + size], seconds)
            for record in records:
                for table, rows in rows_of(record, shard.index, self.info).items():
                    files[table].append(rows)
            failed = [r.failure.error_class for r in records if r.failure is not None]
            done = first + len(records)
            errors.update(failed)
            self._events.append(
                {
                    "what": f"shard {shard.index}: {done} of {len(shard.items)} done",
                    "done": len(records),
                    "failed": len(failed),
                    "errors": failed,
                    "seconds": time.monotonic() - began,
                }
            )
            crash.at("mid-shard")
        quarantined = errors.total()
        return {
            "attempt": attempt,
            "files": {table: _finish(file) for table, file in files.items()},
            "ok": len(shard.items) - quarantined,
            "quarantined": quarantined,
            "errors": dict(errors),
            "seconds": round(time.monotonic() - started, 3),
            "stage_seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            "models": sorted(self._used),
        }

    def _stages(
        self, shard: Shard, first: int, items: Sequence[Item], seconds: defaultdict[str, float]
    ) -> list[Record]:
        records = [read(item, self.settings.split) for item in items]
        for stage in self.stages:
            count = f"{first + 1}-{first + len(items)}" if len(items) > 1 else f"{first + 1}"
            what = f"shard {shard.index}: {stage.stage} {count} of {len(shard.items)}"
            self._events.append({"what": what})
            began = time.monotonic()
            records = stage.run(records)
            seconds[stage.stage] += time.monotonic() - began
            if stage.stage == "align":
                # The encoded file is not needed again, and 64 large photographs add up.
                records = [replace(record, data=None) for record in records]
        return records


def read(item: Item, split: str) -> Record:
    """The record of an image with its file's bytes, or with a failure where it is unreadable.

    Raises StorageError where the fault is not the image's.
    """
    record = Record(image_id=item.image_id, source=item.image_id, split=split)
    try:
        return replace(record, data=sources.read(item))
    except sources.Unreadable as error:
        message = f"{item.image_id} cannot be read: {error}"
        return record.failed("read", "unreadable", message)


def run_info(config: Config, rows: int, metadata: dict[str, Any]) -> RunInfo:
    """What the tables record about a run."""
    thresholds = config.segment.get("thresholds", {})
    return RunInfo(
        rows=rows,
        embedder=config.embed["name"],
        thresholds={key: value for key, value in thresholds.items() if value is not None},
        store_deltas=config.store_deltas,
        random_weights=config.generator == "tiny",
        metadata=metadata,
    )


def _build(config: Config) -> Iterator[Stage]:
    for family in registry.STAGES:
        section = getattr(config, family)
        member = registry.lookup(family, section["name"])
        yield member(member.Options(**section))


def _feature_size(generator: Any) -> int:
    block = generator.feature_block
    return generator.channels[block + 1] * (8 * 2**block) ** 2


def _finish(file: TableFile) -> dict[str, Any]:
    file.close()
    return {"rows": file.rows, "bytes": file.path.stat().st_size, "sha256": sha256(file.path)}
