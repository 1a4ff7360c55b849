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
    "--preset", metavar="NAME", help="smoke, ablations, occluders, published or refine-speed."
)
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A benchmark of your own, in YAML.",
)
@click.option(
    "--dataset", "datasets", multiple=True, metavar="NAME|PLACE", help="Instead of its datasets."
)
@click.option("--limit", type=click.IntRange(1), help="Only the first images of each dataset.")
@click.option("--out", required=True, metavar="DIR|URL", help="Place of the table and its runs.")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to use; 0: CPU.  [default: all]")
@click.option("--address", help="Ray cluster to join.  [default: a local session]")
@click.option("-n", "--dry-run", is_flag=True, help="Print the runs and stop; touches nothing.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "rich", "plain", "none"]),
    default="auto",
    show_default=True,
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
    """Compare methods: make the runs that are missing, then the table. Resumes like `run`.

    The table is written to OUT as index.html, benchmark.md, .tex, .csv and .json, with the numbers
    of every image in images.csv; the runs are in OUT/runs.

    \b
    Exit codes: 0 done, 1 error or a run failed, 2 usage or refused, 3 too many images quarantined,
    130 interrupted (state is safe).
    """
    from dhr_batch.pipeline.bench import run as benchmarks
    from dhr_batch.pipeline.bench.matrix import read_matrix, shipped_matrix, shipped_names

    if (preset is None) == (file is None):
        names = ", ".join(shipped_names())
        raise Refused(
            "one benchmark is needed", way_out=f"give --preset with one of {names}, or -c FILE.yaml"
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
    done = benchmarks.run(planned, machine, say)
    from dhr_batch.pipeline.bench.write import write_benchmark

    page = write_benchmark(planned, done.failed)
    if as_json:
        result = {"report": page, "computed": list(done.computed), "failed": dict(done.failed)}
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(page)
    sys.exit(done.exit_code)
