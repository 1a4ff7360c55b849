"""The command `bench`."""

from __future__ import annotations

import json
import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from dhr_batch.pipeline.cli import complete, output, pulling
from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.errors import Refused


@click.command()
@click.option(
    "--preset",
    metavar="NAME",
    shell_complete=complete.benchmarks,
    help="One of smoke, ablations, occluders, paper, refiners, edits, refine-speed, or end-to-end.",
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
    shell_complete=complete.datasets,
    help="Dataset that replaces those of the benchmark. May be repeated.",
)
@click.option(
    "--generator",
    "generators",
    multiple=True,
    metavar="NAME|FILE",
    shell_complete=complete.generators,
    help="Generator that replaces those of the benchmark. May be repeated.",
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
@cli_options.selected_options("device")
@click.option("--address", help="Ray cluster to join.  [default: a local session]")
@click.option("-n", "--dry-run", is_flag=True, help="Print the runs and write nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before models are downloaded.")
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
    generators: tuple[str, ...],
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    out: str,
    **where: Any,
) -> None:
    """Compare methods on datasets: compute the missing runs, then write the tables.

    The same command again finishes an interrupted benchmark. The tables are written to OUT as
    index.html, benchmark.md, .tex, .csv and .json, and the numbers of every image as images.csv.
    The runs are in OUT/runs.

    A method or metric whose model is missing, and was not downloaded when asked, is left out. Its
    row or column names the model and the command to get it.

    Exit codes: 0 done, also if models are missing for a part; 1 error, a run
    failed, or models are missing for all; 2 usage error or refused, 3 too many
    images quarantined, 130 interrupted (finished work is kept).
    """
    from dhr_batch.pipeline.bench import needs
    from dhr_batch.pipeline.bench import run as benchmarks
    from dhr_batch.pipeline.bench.matrix import read_matrix, shipped_matrix, shipped_names
    from dhr_batch.pipeline.models.needed import to_download

    if (preset is None) == (file is None):
        names = ", ".join(shipped_names())
        raise Refused(
            "--preset with -c" if preset else "no benchmark",
            "each of them is a benchmark" if preset else "neither --preset nor -c is given",
            f"give either --preset with one of {names}, or -c FILE.yaml",
        )
    output.log_to_stderr(logging.WARNING)
    machine = benchmarks.Machine(**where)

    def say(text: str) -> None:
        for line in text.split("\n"):
            output.say(line, err=True)

    matrix = read_matrix(file) if file else shipped_matrix(preset or "")
    if datasets:
        matrix = matrix.model_copy(update={"datasets": datasets})
    if generators:
        matrix = matrix.model_copy(update={"generators": generators})
    make = partial(benchmarks.plan, matrix, out, limit, machine)
    planned = make() if dry_run else pulling.on_demand(make, yes)
    if not dry_run:
        missing = needs.missing(planned.cells)
        if pulling.offer([name for name in missing if to_download([name])], yes):
            planned = make()
    if dry_run:
        for cell in planned.cells:
            note = f"  (from {cell.begins_at} of {cell.base})" if cell.base else ""
            if cell.needs:
                note = f"  ({needs.text(cell.needs)})"
            output.say(f"{planned.place(cell.name)}{note}")
        for line in needs.summary(planned.cells):
            say(line)
        return
    outcome = benchmarks.run(planned, machine, say)
    from dhr_batch.pipeline.bench.write import write_benchmark

    page = write_benchmark(planned, outcome.failed)
    if as_json:
        result = {
            "report": page,
            "computed": list(outcome.computed),
            "failed": dict(outcome.failed),
            "needs": {cell.name: dict(cell.needs) for cell in planned.cells if cell.needs},
            "lacks": {k: dict(v) for c in planned.cells for k, v in c.lacks.items()},
        }
        click.echo(json.dumps(result, indent=2))
    else:
        output.say(page)
    for line in needs.summary(planned.cells):
        say(line)
    sys.exit(outcome.exit_code)
