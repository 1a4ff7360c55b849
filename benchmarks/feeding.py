"""How well the host of a machine feeds its GPUs: a simulation without any GPU.

python -m dhr_batch.benchmarks.feeding [--images N] [--json FILE]

Runs of the whole engine on photographs, at 256 and 1024 px and with one and two workers. The stages
of the device (embed, refine, edit) are replaced by waits that release the processor. The pictures
that they return are the photograph with noise. The work of the host is real: reading, alignment,
the masks and metrics without the networks that a GPU would compute, and writing. The detector of
faces and the network of identity run on the processor as well, so that the load is an upper bound.

`host_load` is the share of all cores that the host's work takes if no device waits. `busy_share` is
the share of the time in which the devices are busy, after the first batch of each worker; that of
the whole result is the smallest one of the rows whose `host_load` is at most 0.8.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import click
import numpy as np

from dhr_batch.benchmarks.machine import json_option, processor, write_json
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.stages.base import Context, EditedImage, Record, Stage, StageOptions, required

SIZES, WAITS, WORKERS = (256, 1024), (0.5, 1.0, 2.0, 4.0), (1, 2)
BATCH = 8
# Rows of a higher load are left out of the result: no host can feed devices beyond its cores.
MOST_LOAD = 0.8
_LEAST_ROWS = 4
# A smile and a yaw with the default strengths.
_EDITS = tuple(product(("smile", "yaw"), (-2.0, -1.0, 1.0, 2.0)))
# The numbers of refined weights and of the channels of the feature layer of the embedded generator.
_WEIGHTS, _CHANNELS = 2_900_000, 64


class Wait(Stage):
    """Waits instead of computing on a device, and notes when it did."""

    class Options(StageOptions):
        """Settings of `Wait`.

        Attributes:
            seconds: The time to wait per image.
            log: A folder for the notes, one file per process.
        """

        seconds: float = 0.0
        log: str = "."

    def process(self, records: Sequence[Record]) -> list[Record]:
        note = {"stage": self.family, "images": len(records), "began": time.monotonic()}
        note["cpu"] = time.process_time()
        time.sleep(self.options.seconds * len(records))
        with Path(self.options.log, f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(note | {"ended": time.monotonic()}) + "\n")
        return [self.made(record) for record in records]

    @abstractmethod
    def made(self, record: Record) -> Record:
        """Return the record with what the stage would have made."""


class Embed(Wait):
    family, needs = "embed", frozenset({"image"})
    gives: ClassVar = frozenset({"latent", "inverted"})

    def made(self, record: Record) -> Record:
        code = _draw(record).standard_normal((_Generator.num_ws, 512), np.float32)
        return replace(record, latent=code, inverted=_noisy(record, 12))


class Refine(Wait):
    family, needs = "refine", frozenset({"latent"})
    gives: ClassVar = frozenset({"delta", "feature", "state", "refined"})

    def setup_render(self, context: Context) -> None:
        pass

    def render_models(self) -> set[str]:
        return set()

    def made(self, record: Record) -> Record:
        draw = _draw(record)
        delta = {"weight": 0.003 * draw.standard_normal(_WEIGHTS, np.float32)}
        side = min(256, len(required(record.image)))
        feature = 0.1 * draw.standard_normal((_CHANNELS, side, side), np.float32)
        return replace(record, delta=delta, feature=feature, refined=_noisy(record, 4))


class Edit(Wait):
    family, needs, gives = "edit", frozenset({"latent"}), frozenset({"edits"})

    def made(self, record: Record) -> Record:
        code = required(record.latent)
        edits = (EditedImage(n, s, "", code, _noisy(record, 4 + abs(s))) for n, s in _EDITS)
        return replace(record, edits=tuple(edits))


class _Generator:
    """What the engine asks a generator for."""

    num_ws, feature_shape = 18, (_CHANNELS, 256, 256)

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def weight_names(self) -> list[str]:
        return []

    def magnitudes(self) -> dict[str, float]:
        return {"weight": 1.0, "feature": 1.0}


def generator256(context: Context) -> _Generator:
    return _Generator(256)


def generator1024(context: Context) -> _Generator:
    return _Generator(1024)


def _draw(record: Record) -> np.random.Generator:
    return np.random.default_rng(len(record.image_id))


def _noisy(record: Record, size: float) -> np.ndarray:
    image = required(record.image)
    noise = _draw(record).normal(0.0, size, image.shape[:2])[..., None]
    return (image + noise).clip(0, 255).astype(np.uint8)


def settings(size: int, wait: float, workers: int, log: str) -> list[dict[str, Any]]:
    """Return the layers of settings of a run.

    Args:
        size: The side of the pictures in pixels.
        wait: The seconds on the device per image.
        workers: The number of workers with a device each.
        log: The folder for the notes of the stages.
    """
    here = "dhr_batch.benchmarks.feeding"
    shares = {"embed": 0.5, "refine": 0.4, "edit": 0.1}
    waits = {
        family: {"name": f"{here}:{family.title()}", "seconds": share * wait, "log": log}
        for family, share in shares.items()
    }
    return [
        {"dataset": "feeding", "generator": f"{here}:generator{size}", "gpus": workers},
        {"shard_size": BATCH, "batch_size": BATCH, **waits},
        {"segment": {"error": False}, "measure": {"perceptual": []}},
    ]


def measured(
    dataset: str, images: int, size: int, wait: float, workers: int, cores: int
) -> dict[str, Any]:
    """Run and return a row of the result.

    Args:
        dataset: The photographs, which are repeated.
        images: The number of images for each worker.
        size, wait, workers: As in `settings`.
        cores: The number of cores of this machine.

    Raises:
        CommandError: If not all photographs were processed.
    """
    from dhr_batch.pipeline.datasets import named
    from dhr_batch.pipeline.engine import runner
    from dhr_batch.pipeline.planning import config, devices, plan
    from dhr_batch.pipeline.planning.request import Request

    found = named.find(dataset)
    listed = named.list_images(found)
    items = [
        listed[number % len(listed)]._replace(image_id=f"{number:05}")
        for number in range(images * workers)
    ]
    with tempfile.TemporaryDirectory() as folder:
        layers = settings(size, wait, workers, folder)
        resolved = config.resolve(config.build(layers), workers, len(items))
        made = plan.make(resolved, found, items)
        request = Request(out=f"{folder}/run", progress="none", report=False, quiet=True)
        with (
            mock.patch.object(devices, "torch_device", return_value="cpu"),
            mock.patch.object(devices, "physical_gpus", return_value=workers),
        ):
            outcome = runner.run(made, request)
        if outcome.done != len(items):
            raise CommandError(
                f"{outcome.done} of {len(items)} images were finished",
                "photographs without a face, or an interruption",
                "use other photographs",
            )
        notes = [
            [json.loads(line) for line in file.read_text().splitlines()]
            for file in Path(folder).glob("*.jsonl")
        ]
    return {"size": size, "wait": wait, "workers": workers} | row(notes, wait, cores)


def row(
    notes: Iterable[Sequence[dict[str, Any]]], wait: float, cores: int
) -> dict[str, float | None]:
    """Return the figures of a run.

    Args:
        notes: The notes of each worker, in order.
        wait: The seconds on the device per image.
        cores: The number of cores of this machine.
    """
    shares, seconds = [], []
    for own in notes:
        later = [number for number, note in enumerate(own) if note["stage"] == "embed"][1:]
        if len(later) < 2:
            raise CommandError(
                "a worker had too few batches",
                "the first is not measured, and the others are compared with each other",
                "use more images",
            )
        steady = own[later[0] :]
        wall = steady[-1]["ended"] - steady[0]["began"]
        shares.append(sum(note["ended"] - note["began"] for note in steady) / wall)
        # From the beginning of one batch to that of another, as many batches end as begin.
        begun = [own[number] for number in later]
        images = sum(note["images"] for note in begun[:-1])
        seconds.append((begun[-1]["cpu"] - begun[0]["cpu"]) / images)
    workers = len(seconds)
    host = sum(seconds) / workers
    return {
        "busy_share": sum(shares) / workers,
        "host_seconds": host,
        "host_load": host * workers / wait / cores,
        "cores_per_gpu": host / wait / MOST_LOAD,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the result of all rows."""
    counted = [row["busy_share"] for row in rows if row["host_load"] <= MOST_LOAD]
    return {
        "busy_share": min(counted, default=None),
        "rows_counted": len(counted),
        "warnings": [f"only {len(counted)} rows have a load that counts"]
        if len(counted) < _LEAST_ROWS
        else [],
        "rows": rows,
    }


@click.command(cls=Command, help=__doc__)
@click.option(
    "--images",
    type=click.IntRange(2 * BATCH),
    default=5 * BATCH,
    show_default=True,
    help="Number of images for each worker.",
)
@click.option("--dataset", default="portraits", show_default=True, help="Photographs.")
@json_option
def main(images: int, dataset: str, file: Path | None) -> None:
    from dhr_batch.pipeline.planning import devices

    cores = devices.cores()
    click.echo(f"{processor()}, {cores} cores")
    rows = []
    for size, wait, workers in product(SIZES, WAITS, WORKERS):
        rows.append(measured(dataset, images, size, wait, workers, cores))
        click.echo(
            "{size} px, {wait:g} s per image, {workers} workers: devices busy {busy_share:.1%}, "
            "{host_seconds:.2f} CPU s per image, host load {host_load:.0%}, "
            "{cores_per_gpu:.1f} cores per GPU".format(**rows[-1])
        )
    result = summary(rows)
    if result["busy_share"] is not None:
        click.echo(f"devices are busy at least {result['busy_share']:.1%} of the time")
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}")
    write_json(result, file)


if __name__ == "__main__":
    main()
