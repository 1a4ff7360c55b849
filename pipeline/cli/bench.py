"""The command `bench`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from dhr_batch.pipeline.errors import Refused


@click.command()
@click.option(
    "--preset",
    metavar="NAME",
    help="Benchmark: smoke, ablations, occluders, published or refine-speed.",
)
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file with a benchmark of your own.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME|PLACE",
    help="Dataset that replaces those of the benchmark. May be repeated.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Number of images of each dataset, from the first.  [default: all]",
)
@click.option(
    "--out", required=True, metavar="DIR|URL", help="Folder or URL of the tables and the runs."
)
@click.option(
    "--gpus",
    type=click.IntRange(0),
    help="Number of GPUs to use; 0 for the CPU.  [default: all]",
)
@click.option("--address", help="Ray cluster to join.  [default: a local session]")
@click.option("-n", "--dry-run", is_flag=True, help="Print the runs and write nothing.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "rich", "plain", "none"]),
    default="auto",
    show_default=True,
    help="Kind of progress display.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def bench(
    preset: str | None,
    file: Path | None,
    datasets: tuple[str, ...],
    limit: int | None,
    dry_run: bool,
    as_json: bool,
    out: str,
    **where: Any,
) -> None:
    """Compare methods on datasets: compute the missing runs, then write the tables.

    The same command again finishes an interrupted benchmark. The tables are written to OUT as
    index.html, benchmark.md, .tex, .csv and .json, and the numbers of every image as images.csv.
    The runs are in OUT/runs.

    \b
    Exit codes: 0 done, 1 error or a run failed, 2 usage error or refused,
    3 too many images quarantined, 130 interrupted (finished work is kept).
    """
    from dhr_batch.pipeline.bench import run as benchmarks
    from dhr_batch.pipeline.bench.matrix import read_matrix, shipped_matrix, shipped_names

    if (preset is None) == (file is None):
        names = ", ".join(shipped_names())
        raise Refused(
            "--preset with -c" if preset else "no benchmark",
            "exactly one is needed",
            f"give --preset with one of {names}, or -c FILE.yaml",
        )
    logging.basicConfig(level=logging.WARNING)
    machine = benchmarks.Machine(**where)

    def say(text: str) -> None:
        click.echo(text, err=True)

    matrix = read_matrix(file) if file else shipped_matrix(preset or "")
    if datasets:
        matrix = matrix.model_copy(update={"datasets": datasets})
    planned = benchmarks.plan(matrix, out, limit, machine)
    if dry_run:
        for cell in planned.cells:
            begins = f"  (from {cell.begins_at} of {cell.base})" if cell.base else ""
            click.echo(f"{planned.place(cell.name)}{begins}")
        return
    outcome = benchmarks.run(planned, machine, say)
    from dhr_batch.pipeline.bench.write import write_benchmark

    page = write_benchmark(planned, outcome.failed)
    if as_json:
        computed, failed = list(outcome.computed), dict(outcome.failed)
        click.echo(json.dumps({"report": page, "computed": computed, "failed": failed}, indent=2))
    else:
        click.echo(page)
    sys.exit(outcome.exit_code)
