"""The size of stored deltas, and their loss of picture quality.

python -m dhr_batch.benchmarks.delta_size [--images N] [--dataset NAME|FOLDER] [--json FILE]

Photographs are embedded and refined as in a run. Their deltas are written as in a run, read back,
and used to render the refined picture and the edit `smile` with both signs. Losses are in dB. That
of the refined picture is its loss of PSNR against the source. An edited picture has no source: its
error against the edit with exact deltas is converted to the loss that the same error would be for
the refined picture.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq

from dhr_batch.benchmarks.machine import json_option, write_json
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.planning import devices
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.tables.codec import LEVELS, Steps
from dhr_batch.pipeline.tables.files import TableFile
from dhr_batch.pipeline.tables.records import refinement
from dhr_batch.pipeline.tables.rows import rows_of
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.pipeline.worker.reading import read_record
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages.record import Record, required

DEFAULT = "small"
# `coarser` is not a setting of runs. It shows the loss with fewer bytes.
COMPARED = {"coarser": Steps(*(2 * step for step in LEVELS[DEFAULT])), **LEVELS}
SMILES = (-2.0, 2.0)
# The root mean square of offsets divided by that of their weights, after the default refinement on
# `mobilestylegan-256`.
OFFSET = 0.039

Row = dict[str, Any]


def refined(request: Any) -> Iterator[tuple[Worker, Record]]:
    """Refine the photographs of a dataset. Yields the worker and the record of each photograph."""
    plan = prepare(request)
    device = devices.torch_device(plan.config)
    computer = Worker(Settings(plan.config, plan.dataset.aligned, plan.dataset.split, device, ""))
    computer.setup()
    for item in (item for shard in plan.shards for item in shard.items):
        records = [read_record(item, plan.dataset.split)]
        for stage in computer.stages:
            if stage.family in ("align", "embed", "segment", "refine"):
                records = stage.run(records)
        if records[0].failure is None:
            yield computer, records[0]
        else:
            click.echo(f"left out: {records[0].failure.message}", err=True)


def stored(record: Record, info: RunInfo) -> tuple[int, Record]:
    """Write the rows of an image and read them back.

    Returns:
        The compressed bytes of its rows in `deltas`, `latents` and `masks` (without the labels),
        and the record that was read back.
    """
    rows = rows_of(replace(record, labels=None, edits=(), metrics=()), 0, info)
    count, fields = 0, {}
    with tempfile.TemporaryDirectory() as folder:
        for table in ("deltas", "latents", "masks"):
            path = Path(folder) / f"{table}.parquet"
            file = TableFile(path, table, info)
            file.append(rows.get(table, []))
            file.close()
            count += column_bytes(path)
            if table == "deltas":
                fields = refinement(record.image_id, pq.read_table(path).to_pylist())
    return count, replace(record, **fields)


def column_bytes(path: Path) -> int:
    """Return the compressed bytes of all columns of a Parquet file."""
    footer = pq.read_metadata(path)
    groups = (footer.row_group(i) for i in range(footer.num_row_groups))
    return sum(g.column(i).total_compressed_size for g in groups for i in range(g.num_columns))


def compare(record: Record, context: Any, info: RunInfo) -> Iterator[Row]:
    """Yield the bytes and losses of a photograph at every level."""
    from dhr_batch.stages.edit.rerender import Rerender

    make = Rerender(context, [("smile", strength) for strength in (0.0, *SMILES)])

    def pictures(rendered: Record) -> list[np.ndarray]:
        return [edit.image for edit in make(rendered).edits]

    exact = pictures(record)
    distance = error(exact[0], required(record.image))
    for level, steps in COMPARED.items():
        count, decoded = stored(record, replace(info, deltas=steps))
        again = pictures(decoded)
        row: Row = {"image": record.image_id, "level": level, "bytes": count}
        row["out_of_domain"] = 1 - float(required(record.mask).mean())
        row["psnr"] = decibels(distance)
        row["refined"] = decibels(distance) - decibels(error(again[0], required(record.image)))
        for strength, before, after in zip(SMILES, exact[1:], again[1:], strict=True):
            row[f"smile {strength:+g}"] = 10 * math.log10(1 + error(before, after) / distance)
        row["psnr_to_exact"] = min(
            decibels(error(before, after)) for before, after in zip(exact, again, strict=True)
        )
        yield row


def error(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean squared error of two pictures."""
    return float(np.square(one.astype(float) - other).mean())


def decibels(mean_square: float) -> float:
    """Return the peak signal-to-noise ratio of uint8 pictures in dB."""
    return 10 * math.log10(255**2 / max(mean_square, 1e-9))


def summary(rows: Iterable[Row], generator: str) -> list[Row]:
    """Return the means and worst cases over the photographs at each level."""
    found = []
    for level in COMPARED:
        selected = [row for row in rows if row["level"] == level]
        line: Row = {"generator": generator, "level": level, "images": len(selected)}
        line["bytes"] = sum(row["bytes"] for row in selected) / len(selected)
        line["most_bytes"] = max(row["bytes"] for row in selected)
        for what in ("refined", *(f"smile {s:+g}" for s in SMILES)):
            line[what] = sum(row[what] for row in selected) / len(selected)
            line[f"{what} worst"] = max(row[what] for row in selected)
        found.append(line)
    return found


def computed(levels: Mapping[str, Steps]) -> Iterator[Row]:
    """Yield the bytes of random weights and features of the shapes of StyleGAN2 at 1024 px.

    Half of the cells are out-of-domain. Quality is not measured. Real features are smoother and
    take fewer bytes.
    """
    from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2, config_f
    from dhr_batch.stages.refine.dhr import HybridRefinement, smallest, tuned_weights

    net, draw = StyleGAN2(config_f(1024)), np.random.default_rng(0)
    names = tuned_weights(net, smallest(HybridRefinement.Options.model_validate({}), net))
    shapes = {name: tuple(net.weight(name).shape) for name in names}
    delta = {
        name: draw.standard_normal(shape, np.float32) * OFFSET for name, shape in shapes.items()
    }
    mask = np.zeros((1024, 1024), bool)
    mask[:512] = True
    record = Record(
        "filled",
        "filled",
        latent=draw.standard_normal((net.num_ws, 512), np.float32),
        mask=mask,
        delta=delta,
        feature=draw.standard_normal(net.feature_shape, np.float32),
    )
    # Published weights have unit variance.
    sizes = {name: math.sqrt(math.prod(shape)) for name, shape in shapes.items()}
    info = RunInfo(rows=net.num_ws, embedder="w+", magnitudes=sizes | {"feature": 1.0})
    for level, steps in levels.items():
        count, _ = stored(record, replace(info, deltas=steps))
        yield {"generator": "StyleGAN2 1024 (computed)", "level": level, "bytes": count}


def text(row: Row) -> str:
    """Return a row of `summary` or `computed` as text."""
    line = f"{row['generator']:26}{row['level']:9}{row['bytes'] / 1e6:6.2f} MB"
    if "images" not in row:
        return line
    line += f" (most {row['most_bytes'] / 1e6:.2f}), {row['images']} images; dB lost, mean (worst):"
    parts = ("refined", *(f"smile {s:+g}" for s in SMILES))
    return line + ",".join(f" {p} {row[p]:.3f} ({row[f'{p} worst']:.3f})" for p in parts)


@click.command(cls=Command, help=__doc__)
@click.option(
    "--images", type=click.IntRange(1), help="Number of images, from the first.  [default: all]"
)
@click.option("--dataset", default="portraits", show_default=True, help="Dataset of photographs.")
@click.option("--generator", default="mobilestylegan-256", show_default=True, help="Generator.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting, as in `run`.")
@json_option
def main(
    images: int | None, dataset: str, generator: str, sets: tuple[str, ...], file: Path | None
) -> None:
    from dhr_batch.pipeline.planning.request import Request

    # Runs that store deltas refine to what they store.
    settings: Row = {"dataset": dataset, "generator": generator, "store_deltas": "none"}
    settings |= {"limit": images} if images else {}
    rows: list[Row] = []
    for computer, record in refined(Request(settings=settings, sets=sets)):
        for row in compare(record, computer.stages[3].context, computer.info):
            rows.append(row)
            figures = (f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float))
            size = f"{row['bytes'] / 1e6:.2f} MB"
            click.echo(f"  {row['image']:24}{row['level']:9}{size}, {', '.join(figures)}")
    if not rows:
        raise CommandError(
            f"--dataset {dataset}",
            "no photograph could be refined; the reasons are above",
            "choose a dataset with faces",
        )
    lines = [*summary(rows, generator), *computed(LEVELS)]
    for line in lines:
        click.echo(text(line))
    chosen = next(line for line in lines if line["level"] == DEFAULT)
    head = {"bytes_per_image": chosen["bytes"], "psnr_loss_db": chosen["refined"]}
    head |= {"psnr_loss_db_worst": chosen["refined worst"]}
    write_json(head | {"rows": lines, "images": rows}, file)


if __name__ == "__main__":
    main()
