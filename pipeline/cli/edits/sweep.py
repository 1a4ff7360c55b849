"""The command `edits sweep`: edits of a finished run, without refining again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from dhr_batch.pipeline.cli import complete, start
from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.editing.choice import Choice
from dhr_batch.pipeline.storage.locations import is_url
from dhr_batch.stages.edit import syntax


@click.command()
@click.argument("run", metavar="RUN", shell_complete=complete.paths)
@click.option(
    "--edit",
    "edits",
    multiple=True,
    required=True,
    metavar="NAME=STRENGTHS",
    shell_complete=complete.edits,
    help="Direction, or its file, and strengths such as -1,0.5,1 or FIRST:LAST:COUNT; several for "
    "one picture are joined by +. May be repeated.",
)
@click.option("--out", metavar="DIR|URL", help="Run folder of the result.  [default: RUN-sweep]")
@cli_options.selected_options(
    "gpus", "device", "workers_per_gpu", "sets", "limit", "address", "allow_code", "extend"
)
@cli_options.start_options
def sweep(run: str, edits: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Edit all images of a finished run from its tables.

    Each picture takes one and a half forward passes, one with edit.follow=none, or two with the
    refiners hfgi and sam; nothing is embedded or refined again. The result is a new run with the
    pictures, codes, masks and refinements of RUN, and the new edits and their metrics. The same
    command again finishes an interrupted sweep.

    \b
    Example:
      dhr-batch edits sweep runs/photos --edit smile=-2:2:5 --edit smile=1+age=10
    """
    chosen = {"name": "directions", "edits": parse(edits)}
    # A relative path could be taken for the name of a dataset, and `.-sweep` would be hidden.
    place = run.rstrip("/") if is_url(run) else str(Path(run).expanduser().resolve())
    settings = {"dataset": place, "first_stage": "edit", "edit": chosen}
    target = out or f"{place}-sweep"
    start.start(files=(), settings=settings, out=target, **options)


def parse(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Parse texts such as `smile=-2:2:5` or `smile=1+age=10` into edits of a configuration.

    Raises:
        Refused: If a text has another form.
    """
    return syntax.settings(Choice.of(texts).edits)
