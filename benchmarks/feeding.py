"""How well the host of a machine feeds its GPUs: a simulation without any GPU.

python -m dhr_batch.benchmarks.feeding [--json FILE]

Runs of the whole engine on photographs, at 256 and 1024 px and with one and two workers. The stages
of the device (embed, refine, edit) are replaced by waits that release the processor. The pictures
that they return are the photograph with noise. The work of the host is real: reading, alignment,
masks, landmarks, the metrics that the host computes, and writing. What `measure` computes on a
device is left out. The detector of faces runs on the processor, so that the load is an upper bound.

A run goes through all waits, so that there are four runs. A turn of a device begins with the
embedding of a batch. In it, earlier batches are refined and edited with the wait of that turn. The
first turns fill the pipeline and are not counted, nor is the end of the run.

`host_seconds` is the CPU time per image of a worker in all counted turns of a run, and `host_load`
the share of all cores that this takes if no device waits. `busy_share` is the share of the time of
the turns of a wait in which the devices are busy; that of the whole result is the smallest one of
the rows whose `host_load` is at most 0.8. No other work may run on the machine: about 13 minutes.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, pairwise, product, repeat
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import click
import numpy as np
from torch import Tensor, nn

from dhr_batch.benchmarks.machine import json_option, processor, write_json
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.stages.base import Stage, StageOptions
from dhr_batch.stages.context import Context
from dhr_batch.stages.measure.metrics import Part
from dhr_batch.stages.measure.standard import Standard
from dhr_batch.stages.record import EditedImage, Record, required

SIZES, WORKERS = (256, 1024), (1, 2)
# The number of turns for each wait in seconds per image, in order, and of those before them.
TURNS = {4.0: 1, 2.0: 2, 1.0: 3, 0.5: 3}
FILLING = 5
BATCH = 8
# Rows of a higher load are left out of the result: no host can feed devices beyond its cores.
MOST_LOAD = 0.8
_LEAST_ROWS = 4
# A smile and a yaw with the default strengths.
_EDITS = tuple(product(("smile", "yaw"), (-2.0, -1.0, 1.0, 2.0)))
# The numbers of refined weights and of the channels of the feature layer of the embedded generator.
_WEIGHTS, _CHANNELS = 2_900_000, 64


class Wait(Stage):
    """Waits instead of computing on a device, and notes when it did.

    Attributes:
        share: The share of the wait of an image.
        wait: The wait of the current turn in seconds per image.
    """

    share: ClassVar[float]
    wait: ClassVar = 0.0

    class Options(StageOptions):
        """Settings of `Wait`.

        Attributes:
            waits: The seconds per image on the device in each turn. Later ones are as the last.
            log: A folder for the notes, one file per process.
        """

        waits: tuple[float, ...] = (0.0,)
        log: str = "."

    def process(self, records: Sequence[Record]) -> list[Record]:
        note = {"stage": self.family, "images": len(records), "began": time.monotonic()}
        note["cpu"] = time.process_time()
        time.sleep(self.share * Wait.wait * len(records))
        with Path(self.options.log, f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(note | {"ended": time.monotonic()}) + "\n")
        return [self.made(record) for record in records]

    @abstractmethod
    def made(self, record: Record) -> Record:
        """Return the record with what the stage would have made."""


class Embed(Wait):
    family, needs = "embed", frozenset({"image"})
    gives: ClassVar = frozenset({"latent", "inverted"})
    share = 0.5

    def setup(self, context: Context) -> None:
        super().setup(context)
        self._waits = chain(self.options.waits, repeat(self.options.waits[-1]))

    def process(self, records: Sequence[Record]) -> list[Record]:
        Wait.wait = next(self._waits)
        return super().process(records)

    def made(self, record: Record) -> Record:
        code = _noise(_Generator.num_ws * 512).reshape(-1, 512)
        return replace(record, latent=code, inverted=_noisy(record, 12))


class Refine(Wait):
    family, needs = "refine", frozenset({"latent"})
    gives: ClassVar = frozenset({"delta", "feature", "state", "refined"})
    share = 0.4

    def setup_render(self, context: Context) -> None:
        pass

    def render_models(self) -> set[str]:
        return set()

    def made(self, record: Record) -> Record:
        side = min(256, len(required(record.image)))
        feature = 0.1 * _noise(_CHANNELS * side**2).reshape(_CHANNELS, side, side)
        delta = {"weight": 0.003 * _noise(_WEIGHTS)}
        return replace(record, delta=delta, feature=feature, refined=_noisy(record, 4))


class Edit(Wait):
    family, needs, gives = "edit", frozenset({"latent"}), frozenset({"edits"})
    share = 0.1

    def made(self, record: Record) -> Record:
        code = required(record.latent)
        edits = (EditedImage(n, s, "", code, _noisy(record, 4 + abs(s))) for n, s in _EDITS)
        return replace(record, edits=tuple(edits))


class Measure(Standard):
    """Measures without the device: pixel metrics are 0, and so are the descriptors of faces."""

    def setup(self, context: Context) -> None:
        super().setup(context)
        networks: Mapping[str, Any] = self.identity
        for network in networks.values():
            network.net = _Descriptor()

    def _values(
        self,
        source: np.ndarray,
        renders: Mapping[str, np.ndarray],
        parts: Mapping[str, Part],
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(renders), len(parts), 4)), np.zeros((0, len(renders), len(parts)))


class _Descriptor(nn.Module):
    def forward(self, faces: Tensor) -> Tensor:
        return faces.new_zeros(len(faces), 128)


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


@cache
def _noise(count: int) -> np.ndarray:
    # Drawn once, because a device would take nothing of the processor for it.
    return np.random.default_rng(count).standard_normal(count, np.float32)


@cache
def _levels(side: int, size: float) -> np.ndarray:
    return (size * _noise(side**2)).astype(np.int16).reshape(side, side, 1)


def _noisy(record: Record, size: float) -> np.ndarray:
    image = required(record.image)
    return (image + _levels(len(image), size)).clip(0, 255).astype(np.uint8)


def schedule(turns: Mapping[float, int]) -> list[float]:
    """Return the wait of each turn of a run, those before and the one after the counted included.

    Args:
        turns: As `TURNS`.
    """
    counted = [wait for wait, count in turns.items() for _ in range(count)]
    return [min(counted)] * FILLING + counted + [min(counted)]


def settings(size: int, workers: int, waits: Sequence[float], log: str) -> list[dict[str, Any]]:
    """Return the layers of settings of a run.

    Args:
        size: The side of the pictures in pixels.
        workers: The number of workers with a device each.
        waits: The seconds on the device per image in each turn.
        log: The folder for the notes of the stages.
    """
    here = "dhr_batch.benchmarks.feeding"
    stages = {
        family: {"name": f"{here}:{family.title()}", "waits": list(waits), "log": log}
        for family in ("embed", "refine", "edit")
    }
    measure = {"name": f"{here}:Measure", "perceptual": []}
    return [
        {"dataset": "feeding", "generator": f"{here}:generator{size}", "gpus": workers},
        {"shard_size": BATCH, "batch_size": BATCH, **stages},
        {"segment": {"error": False}, "measure": measure},
    ]


def measured(
    dataset: str, size: int, workers: int, cores: int, turns: Mapping[float, int]
) -> list[dict[str, Any]]:
    """Run and return a row of the result for each wait.

    Args:
        dataset: The photographs, which are repeated.
        size, workers: As in `settings`.
        cores: The number of cores of this machine.
        turns: As `TURNS`.

    Raises:
        CommandError: If not all photographs were processed.
    """
    from dhr_batch.pipeline.datasets import named
    from dhr_batch.pipeline.engine import runner
    from dhr_batch.pipeline.planning import config, devices, plan
    from dhr_batch.pipeline.planning.request import Request

    waits = schedule(turns)
    found = named.find(dataset)
    listed = named.list_images(found)
    items = [
        listed[number % len(listed)]._replace(image_id=f"{number:05}")
        for number in range(len(waits) * BATCH * workers)
    ]
    with tempfile.TemporaryDirectory() as folder:
        layers = settings(size, workers, waits, folder)
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
    return [{"size": size, "workers": workers} | row for row in rows_of(notes, turns, cores)]


def rows_of(
    notes: Sequence[Sequence[dict[str, Any]]], turns: Mapping[float, int], cores: int
) -> list[dict[str, Any]]:
    """Return the figures of a run for each wait.

    Args:
        notes: The notes of each worker.
        turns: As `TURNS`.
        cores: The number of cores of this machine.

    Raises:
        CommandError: If a worker had too few batches, because another one was much faster.
    """
    waits = schedule(turns)[FILLING:-1]
    walls, busy = (dict.fromkeys(turns, 0.0) for _ in range(2))
    cpu, images = 0.0, 0
    for own in notes:
        begun = [note for note in own if note["stage"] == "embed"][FILLING:]
        # A worker that is slower than others gets fewer batches.
        for wait, (this, following) in zip(waits, pairwise(begun), strict=False):
            start, end = this["began"], following["began"]
            walls[wait] += end - start
            busy[wait] += sum(
                max(0.0, min(note["ended"], end) - max(note["began"], start)) for note in own
            )
            cpu += following["cpu"] - this["cpu"]
            images += this["images"]
    if not all(walls.values()):
        raise CommandError(
            "a wait was not measured",
            "the workers had too few batches",
            "run it on a machine without other work",
        )
    host, workers = cpu / images, len(notes)
    return [
        {
            "wait": wait,
            "busy_share": busy[wait] / walls[wait],
            "host_seconds": host,
            "host_load": host * workers / wait / cores,
            "cores_per_gpu": host / wait / MOST_LOAD,
        }
        for wait in turns
    ]


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
@click.option("--dataset", default="portraits", show_default=True, help="Photographs.")
@json_option
def main(dataset: str, file: Path | None) -> None:
    import ray

    from dhr_batch.pipeline.cores import cores as usable

    cores = usable()
    click.echo(f"{processor()}, {cores} cores")
    # One session for all runs. Each run would start its own.
    ray.init(
        address="local",
        num_cpus=max(cores, max(WORKERS)),
        num_gpus=max(WORKERS),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    rows: list[dict[str, Any]] = []
    for size, workers in product(SIZES, WORKERS):
        for row in measured(dataset, size, workers, cores, TURNS):
            rows.append(row)
            click.echo(
                "{size} px, {wait:g} s per image, {workers} workers: devices busy "
                "{busy_share:.1%}, {host_seconds:.2f} CPU s per image, host load {host_load:.0%}, "
                "{cores_per_gpu:.1f} cores per GPU".format(**row)
            )
    ray.shutdown()
    result = summary(rows)
    if result["busy_share"] is not None:
        click.echo(f"devices are busy at least {result['busy_share']:.1%} of the time")
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}")
    write_json(result, file)


if __name__ == "__main__":
    main()
