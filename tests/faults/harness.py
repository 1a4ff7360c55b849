"""Runs with the fault stages in this process, on a Ray session that all tests of a module share."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import ray

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.planning import config, plan
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.faults.stages import NAMES


@contextlib.contextmanager
def session(cpus: int = 2, gpus: int = 0) -> Iterator[None]:
    """Start a Ray session with the minimum that the tests need."""
    ray.init(
        address="local",
        num_cpus=cpus,
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        yield
    finally:
        ray.shutdown()


def photographs(folder: Path, names: Sequence[str]) -> list[Item]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"not looked at")
    return [item(folder, name) for name in names]


def item(folder: Path, name: str) -> Item:
    """Return an item of a dataset for an image file, which need not exist."""
    return Item(name, f"{folder}/", name, -1)


def make(items: Sequence[Item], aligned: bool = False, **settings: Any) -> plan.Plan:
    """Return a plan with the fault stages and one worker. settings: as in a configuration file."""
    defaults = {"dataset": "d", "preset": "tiny", "gpus": 0, "workers": 1, "store_deltas": "small"}
    layers = [config.preset("tiny"), defaults, NAMES, settings]
    dataset = Dataset(name="d", root=".", aligned=aligned)
    resolved = config.resolve(config.build(layers), settings.get("gpus", 0), len(items))
    return plan.make(resolved, dataset, items)


def run(made: plan.Plan, out: str | Path, **request: Any) -> runner.RunOutcome:
    asked = Request(out=out, progress="plain", report=False, **request)
    return runner.run(made, asked)


def table(out: Path, name: str) -> pd.DataFrame:
    """Return all rows of a table in plan order."""
    parts = [pq.read_table(path) for path in sorted(out.glob(f"{name}/part-*.parquet"))]
    return pd.concat([part.to_pandas() for part in parts], ignore_index=True)


def classes(out: Path) -> dict[str, str]:
    """Return the error classes of the quarantined images by image id."""
    rows = table(out, "quarantine")
    return dict(zip(rows["image_id"], rows["error_class"], strict=True))


def finished(out: Path) -> list[str]:
    """Return the images with rows, in plan order."""
    return list(table(out, "latents")["image_id"])


def published(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*/part-*.parquet"))}


@dataclass
class Reader:
    """Reads a run while it is made: opens every file of a table as soon as it appears."""

    root: Path
    opened: int = 0
    problems: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        seen: set[Path] = set()
        while not self.stop.wait(0.002):
            for path in set(self.root.glob("[a-z]*/*")) - seen:
                if path.parent.name == "report":
                    continue
                seen.add(path)
                if not re.fullmatch(r"part-\d{5}\.parquet", path.name):
                    self.problems.append(f"{path} has no name of a finished file")
                try:
                    pq.read_table(path)
                except Exception as error:
                    self.problems.append(f"{path} is not finished: {error}")
                self.opened += 1


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run. files: table files by key; seconds: its duration."""

    files: dict[str, bytes]
    seconds: float = 0.0
    reader: Reader | None = None


def tables(place: object) -> dict[str, bytes]:
    """Return all files in the folders of tables, finished or not."""
    storage = connect(str(place))
    keys = [key for key in storage.sizes() if re.match(r"[a-z]+/", key) and "report/" not in key]
    return {key: storage.read(key) or b"" for key in keys}
