"""Measure the cost of the engine without that of stages: rate, driver time, memory, large plans.

python -m dhr_batch.tests.overhead [--images N] [--json FILE]

Rate and driver time are the best of three. Ends with 1 where one of them misses its limit by more
than a factor of three, which no busy machine explains.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import ray

from dhr_batch.benchmarks.machine import held_mb, json_option, write_json
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.datasets.items import Item, stamp
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.planning import config, plan, resume
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import manifest_key, part
from dhr_batch.pipeline.runs.records.manifests import FileFacts, Manifest, dumps
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.pipeline.worker.attempt import memory_peak
from dhr_batch.tests.no_op import NAMES, write_images

# What each figure is held to: the least or the most.
LIMITS: dict[str, tuple[str, float]] = {
    "images_per_second": (">=", 200),
    "driver_ms_per_shard": ("<", 50),
    "driver_growth_mb": ("<", 50),
    "driver_new_files": ("<=", 2),
    "plan_seconds": ("<", 60),
    "plan_memory_mb": ("<", 1000),
    "resume_seconds": ("<", 60),
    "resume_memory_mb": ("<", 1000),
    "eight_workers_speedup": (">=", 0.95 * 8),
}
# Those that are held to, and by which factor.
_HELD, _SLACK, _TRIES = ("images_per_second", "driver_ms_per_shard"), 3, 3

_TABLES = RunInfo(rows=0, embedder="").tables


@dataclass
class Watch:
    """Notes the time, worker, memory and open files of this process at every commit."""

    commits: list[float] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    waited: float = 0.0
    waits: list[float] = field(default_factory=list)

    def note(self, worker: int) -> None:
        self.workers.append(worker)
        self.waits.append(self.waited)
        self.commits.append(time.perf_counter())
        self.memory.append(held_mb())
        self.files.append(len(os.listdir("/proc/self/fd")))


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Watch the driver of the runs in this block."""
    watch, commit, wait = Watch(), RunFolder.commit, ray.wait

    def noted_commit(self: RunFolder, shard: int, receipt: Manifest, planned: int) -> None:
        commit(self, shard, receipt, planned)
        assert receipt.worker is not None
        watch.note(receipt.worker.number)

    def timed_wait(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return wait(*arguments, **options)
        finally:
            watch.waited += time.perf_counter() - began

    RunFolder.commit, ray.wait = noted_commit, timed_wait  # type: ignore[method-assign]
    try:
        yield watch
    finally:
        RunFolder.commit, ray.wait = commit, wait  # type: ignore[method-assign]


def made(items: list[Item], workers: int, shard_size: int, seconds: float = 0.0) -> plan.Plan:
    """Return a plan of the no-op stages. seconds: how long the embedding sleeps per image."""
    layers: list[dict[str, Any]] = [
        {"dataset": "no-op", "gpus": 0, "workers": workers, "shard_size": shard_size},
        NAMES,
        {"embed": {"name": NAMES["embed"], "seconds": seconds}},
    ]
    resolved = config.resolve(config.build(layers), 0, len(items))
    return plan.make(resolved, Dataset(name="no-op", root="."), items)


def run(items: list[Item], out: Path, workers: int, shard_size: int, seconds: float = 0.0) -> Watch:
    request = Request(out=out, progress="none", report=False, quiet=True)
    with watching() as watch:
        outcome = runner.run(made(items, workers, shard_size, seconds), request)
    if outcome.done != len(items):
        raise CommandError(f"{outcome.done} of {len(items)} images were finished")
    return watch


def rate(watch: Watch, shard_size: int) -> float:
    """Return images per second after every worker has finished its first shard."""
    steady = watch.commits[max(map(watch.workers.index, set(watch.workers))) :]
    return (len(steady) - 1) * shard_size / (steady[-1] - steady[0])


def engine(folder: Path, images: int) -> dict[str, float]:
    """Measure two workers and shards of 32; take the best of several tries."""
    items = write_images(folder / "in", images)
    tries = [_engine(items, folder / f"engine-{number}") for number in range(_TRIES)]
    return {
        name: (max if LIMITS[name][0] == ">=" else min)(figures[name] for figures in tries)
        for name in _HELD
    }


def _engine(items: list[Item], out: Path) -> dict[str, float]:
    watch = run(items, out, 2, 32)
    # From the first commit to the last: before, the driver waits for its workers.
    wall, waited = (times[-1] - times[0] for times in (watch.commits, watch.waits))
    return {
        "images_per_second": rate(watch, 32),
        "driver_ms_per_shard": 1000 * (wall - waited) / (len(watch.commits) - 1),
    }


def soak(folder: Path, shards: int) -> dict[str, float]:
    """Compute many small shards; measure the growth from the first tenth of them to the end."""
    items = write_images(folder / "in", shards)
    watch = run(items, folder / "soak", 2, 1)
    early = len(watch.memory) // 10
    return {
        "soak_shards": len(watch.commits),
        "driver_growth_mb": watch.memory[-1] - watch.memory[early],
        "driver_new_files": watch.files[-1] - watch.files[early],
    }


def speedup(folder: Path) -> dict[str, float]:
    """Compare eight workers with one, with half a second per image and shards of four."""
    items = write_images(folder / "in", 192)
    one = rate(run(items[:24], folder / "one", 1, 4, 0.5), 4)
    eight = rate(run(items, folder / "eight", 8, 4, 0.5), 4)
    return {"one_worker": one, "eight_workers": eight, "eight_workers_speedup": eight / one}


def large_plan(images: int, folder: Path) -> dict[str, float]:
    """Start and resume a million images as far as the first worker, each in a process of its own.

    With torch, which a driver imports to read the options of the stages. The resume is of a run
    whose shards are all finished but one, the most that a driver has to know.
    """
    figures: dict[str, float] = {"plan_images": images}
    for work in (_start, _finish, _resume, _torch):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            figures |= pool.apply(work, (images, folder))
    return figures


def _listed(images: int) -> list[Item]:
    names = (f"{i // 1000:04}/{i:07}.jpg" for i in range(images))
    # No two files of a real folder are of one size, or were written at the same time.
    return [
        Item(name, "/data/", name, stamp(100_000 + i, 1_764_000_000_000_000_000 + 7_000_003 * i))
        for i, name in enumerate(names)
    ]


def _start(images: int, folder: Path) -> dict[str, float]:
    import_module("torch")
    began = time.perf_counter()
    run_folder = RunFolder(folder)
    run_folder.write_plan(made(_listed(images), 8, 32).stored())
    seconds, written = time.perf_counter() - began, run_folder.storage.sizes()["plan.json"]
    return {"plan_file_mb": written / 1e6, "plan_seconds": seconds, "plan_memory_mb": peak_mb()}


def _finish(images: int, folder: Path) -> dict[str, float]:
    """Manifests of all shards but one, without the care of a commit, which takes minutes."""
    facts, run = FileFacts(rows=32, sha256="0" * 64), RunFolder(folder).identity() or ""
    (folder / "_state" / "shards").mkdir(parents=True)
    for shard in range(math.ceil(images / 32) - 1):
        receipt = Manifest(
            attempt=f"{shard:05d}.1.{shard:08x}",
            files=dict.fromkeys(_TABLES, facts),
            ok=32,
            models=["mobilestylegan-256", "stlpips-alex"],
            run=run,
        )
        (folder / manifest_key(shard)).write_bytes(dumps(receipt))
    return {"finished_shards": math.ceil(images / 32) - 1}


def _resume(images: int, folder: Path) -> dict[str, float]:
    import_module("torch")
    began = time.perf_counter()
    run_folder = RunFolder(folder)
    run_folder.lock()
    plan = resume.continued(run_folder, folder, made(_listed(images), 8, 32))
    listed = run_folder.storage.sizes

    def sizes(prefix: str = "") -> dict[str, int]:
        """With the tables, which are too many files for a benchmark."""
        shards = range(len(plan.shards) - 1) if prefix == "" else ()
        return listed(prefix) | {part(table, i): 0 for i in shards for table in _TABLES}

    run_folder.storage.sizes = sizes  # type: ignore[method-assign]
    finished = run_folder.recover()
    assert plan.images == images
    assert len(finished) == len(plan.shards) - 1
    return {"resume_seconds": time.perf_counter() - began, "resume_memory_mb": peak_mb()}


def peak_mb() -> float:
    """Return the peak memory of this process."""
    return memory_peak()["host"] / 1e6


def _torch(images: int, folder: Path) -> dict[str, float]:
    """Return the memory that torch takes, which is not that of the plan."""
    engine = peak_mb()
    import_module("torch")
    return {"engine_memory_mb": engine, "torch_memory_mb": peak_mb() - engine}


def measure(images: int) -> Iterator[dict[str, float]]:
    """Iterate over all figures, by the names in `LIMITS` and some that explain them."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with tempfile.TemporaryDirectory() as name:
        yield large_plan(1_000_000, Path(name))
    session = ray.init(
        address="local", num_cpus=8, num_gpus=0, include_dashboard=False, log_to_driver=False
    )
    with session, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield engine(folder, images)
        yield soak(folder, 2000)
        yield speedup(folder)


def holds(name: str, value: float, slack: float = 1) -> bool:
    relation, limit = LIMITS[name]
    limit = limit / slack if relation == ">=" else limit * slack
    return {">=": value >= limit, "<": value < limit, "<=": value <= limit}[relation]


@click.command(cls=Command, help=__doc__)
@click.option("--images", default=6400, show_default=True, type=click.IntRange(128))
@json_option
def main(images: int, file: Path | None) -> None:
    figures: dict[str, float] = {}
    for some in measure(images):
        figures |= some
        for name, value in some.items():
            limit = ""
            if name in LIMITS:
                verdict = "" if holds(name, value) else "   MISSED"
                limit = f"   {LIMITS[name][0]} {LIMITS[name][1]:g}{verdict}"
            click.echo(f"{name:24}{value:12.2f}{limit}")
    write_json(figures | {"rows": list(figures.items())}, file)
    if missed := [name for name in _HELD if not holds(name, figures[name], _SLACK)]:
        raise CommandError(f"missed by more than {_SLACK} times: {', '.join(missed)}")


if __name__ == "__main__":
    main()
