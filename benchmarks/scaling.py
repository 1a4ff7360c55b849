"""A model of the time, storage requests and memory of runs of any size.

python -m dhr_batch.benchmarks.scaling --images N --gpus N --seconds-per-image S

The model is explained in docs/scaling.md. Its constants are measured by
`python -m dhr_batch.tests.overhead`; its requests are counted in a test.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from dhr_batch.benchmarks.machine import json_option, write_json
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.engine import members
from dhr_batch.pipeline.planning import config, estimate
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.pipeline.units import duration, size

# Seconds of the driver for a shard in a local folder, and for one request to a worker.
COMMIT, QUESTION = 0.011, 0.00016
# Bytes of the driver of a resumed run: without images and with torch, and for each image in
# finished shards of 32.
DRIVER, PER_IMAGE = 0.676e9, 304
# Bytes of an image in plan.json, if ids have 16 characters.
PLAN_BYTES = 50
# The number of keys in one page of a listing, and the size of the parts of large uploads in bytes.
PAGE, PART = 1000, 5 * 2**20
MANIFEST_READERS = 16
# The facts that a worker reports about `mobilestylegan-256`.
GENERATOR = estimate.GeneratorFacts(256, rows=23, weights=7_028_748, feature=2_097_152)


@dataclass(frozen=True)
class ScalingRun:
    """A run of the model.

    Attributes:
        images: The number of images.
        gpus: The number of GPUs.
        seconds: Seconds of a GPU per image.
        shard_size: The number of images in a shard.
        latency: Seconds per storage request.
        tables: The number of tables.
    """

    images: int
    gpus: int
    seconds: float
    shard_size: int
    latency: float = 0.05
    tables: int = len(RunInfo(rows=0, embedder="").tables)

    @property
    def shards(self) -> int:
        return math.ceil(self.images / self.shard_size)

    @property
    def shard_seconds(self) -> float:
        return self.shard_size * self.seconds

    @property
    def wall(self) -> float:
        """The seconds of the run. In the last round of shards, GPUs may be idle."""
        return math.ceil(self.shards / self.gpus) * self.shard_seconds

    @property
    def commits_per_second(self) -> float:
        return min(self.gpus, self.shards) / self.shard_seconds


def upload_requests(count: int) -> int:
    """Return the number of requests to upload a file of `count` bytes."""
    return 1 if count <= PART else math.ceil(count / PART) + 2


def shard_requests(tables: int) -> dict[str, int]:
    """Return the requests to an object store for a shard whose tables are below 5 MiB each.

    The worker uploads the tables. The driver creates the manifest, copies the tables, and lists
    and deletes the staging folder. At the end it reads the manifest once more.
    """
    return {"PUT": tables + 1, "COPY": tables, "LIST": 1, "DELETE": 1, "GET": 1}


def resume_requests(shards: int, tables: int) -> dict[str, int]:
    """Return the requests before the first worker starts, for a run with `shards` finished shards.

    They are for the lease (read and write), `plan.json`, the manifests, and the listings of all
    files and of the staging folders of killed workers.
    """
    fixed = 4  # plan.json, the folder of manifests, the lease and the status file.
    keys = shards * (tables + 1) + fixed
    lists = max(1, math.ceil(shards / PAGE)) + max(1, math.ceil(keys / PAGE)) + 1
    return {"GET": shards + 2, "LIST": lists, "PUT": 1}


def driver_load(run: ScalingRun, object_store: bool) -> float:
    """Return the busy seconds of the driver per second of the run. Above 1, GPUs wait for it.

    In an object store, a commit has four requests in sequence: for the manifest, for the copies,
    which are made at the same time, for the listing and for the deletion of the staging folder.
    """
    answers = 4 * run.latency if object_store else 0.0
    workers = min(run.gpus, run.shards)
    polls = workers * QUESTION / members.poll_seconds(workers)
    return run.commits_per_second * (COMMIT + answers) + polls


def resume_seconds(run: ScalingRun) -> float:
    """Return the seconds of the requests before the first worker starts.

    Pages of listings are requested in sequence, manifests 16 at a time.
    """
    requests = resume_requests(run.shards, run.tables)
    return (requests["LIST"] + requests["GET"] / MANIFEST_READERS) * run.latency


def table_bytes(run: ScalingRun) -> dict[str, float]:
    """Return the expected bytes of each table at 256 px, with the default edits and deltas."""
    layers = [{"dataset": "any", "store_deltas": "small"}]
    settings = config.resolve(config.build(layers), 0, run.images)
    counts = estimate.bytes_per_image(settings, GENERATOR)
    return {table: count * run.images for table, count in counts.items()}


def evaluate(run: ScalingRun) -> dict[str, str]:
    """Return the results of the model as text, by name."""
    per_shard = shard_requests(run.tables)
    tables = table_bytes(run)
    shard_bytes = [count / run.shards for count in tables.values()]
    extra = sum(upload_requests(int(count)) - 1 for count in shard_bytes)
    requests = run.shards * (sum(per_shard.values()) + extra)
    writes = (requests - run.shards * (per_shard["GET"] + per_shard["LIST"])) / run.wall
    lost = run.gpus * run.shard_seconds / 2
    memory = DRIVER + PER_IMAGE * run.images
    return {
        "wall time": duration(run.wall),
        "GPU time": f"{run.images * run.seconds / 3600:,.0f} h",
        "shards": f"{run.shards:,} of {run.shard_size}, {duration(run.shard_seconds)} each",
        "lost with a worker": f"at most {duration(run.shard_seconds)} of a GPU",
        "lost with the driver": f"{lost / 3600:,.1f} GPU h on average",
        "commits": f"{run.commits_per_second:.2f} per second",
        "driver busy, local": f"{100 * driver_load(run, object_store=False):.1f} %",
        "driver busy, object store": f"{100 * driver_load(run, object_store=True):.0f} %",
        "requests": f"{requests:,}, {writes:.1f} writes per second",
        "objects": f"{run.shards * (run.tables + 1):,}",
        "output": ", ".join(f"{table} {size(count)}" for table, count in tables.items()),
        "plan.json": size(PLAN_BYTES * run.images),
        "driver memory": f"{size(memory)} if the run is resumed",
        "start of a resume": f"{duration(resume_seconds(run))} of requests",
    }


@click.command(cls=Command, help=__doc__)
@click.option(
    "--images",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="Number of images.",
)
@click.option(
    "--gpus", default=64, show_default=True, type=click.IntRange(1), help="Number of GPUs."
)
@click.option(
    "--seconds-per-image",
    "seconds",
    default=0.5,
    show_default=True,
    type=float,
    help="Seconds of a GPU per image, which `benchmarks.throughput` computes.",
)
@click.option(
    "--shard-size",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Number of images in a shard.",
)
@click.option("--latency", default=0.05, show_default=True, help="Seconds per storage request.")
@json_option
def main(
    images: int,
    gpus: int,
    seconds: float,
    shard_size: int,
    latency: float,
    file: Path | None,
) -> None:
    run = ScalingRun(images, gpus, seconds, shard_size, latency)
    rows = evaluate(run)
    for name, value in rows.items():
        click.echo(f"{name:28}{value}")
    write_json({"run": asdict(run), "rows": rows}, file)


if __name__ == "__main__":
    main()
