"""The command `edits sweep`: edits of a finished run, without refining again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli import start
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.storage.locations import is_url


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--edit",
    "edits",
    multiple=True,
    required=True,
    metavar="NAME=STRENGTHS",
    help="Direction, or its file, and strengths such as -1,0.5,1 or FIRST:LAST:COUNT. May be "
    "repeated.",
)
@click.option("--out", metavar="DIR|URL", help="Run folder of the result.  [default: RUN-sweep]")
@cli_options.selected_options(
    "gpus", "device", "workers_per_gpu", "sets", "limit", "address", "allow_code", "extend"
)
@cli_options.start_options
def sweep(run: str, edits: tuple[str, ...], out: str | None, **options: Any) -> None:
    """Edit all images of a finished run, using its codes and refined weights.

    Each picture takes one and a half forward passes, one with edit.follow=none, or two with the
    refiners hfgi and sam; nothing is embedded or refined again. The result is a new run with the
    pictures, codes, masks and refinements of RUN, and the new edits and their metrics. The same
    command again finishes an interrupted sweep.

    \b
    Example:
      dhr-batch edits sweep runs/photos --edit smile=-2:2:5 --edit yaw=-1,1
    """
    chosen = {"name": "directions", "edits": parse(edits)}
    # A relative path could be taken for the name of a dataset, and `.-sweep` would be hidden.
    place = run.rstrip("/") if is_url(run) else str(Path(run).expanduser().resolve())
    settings = {"dataset": place, "first_stage": "edit", "edit": chosen}
    target = out or f"{place}-sweep"
    start.start(files=(), settings=settings, out=target, **options)


def parse(texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Parse `NAME=STRENGTHS` texts into edits of a configuration. Each name is one edit.

    Raises:
        Refused: If a text has another form.
    """
    found: dict[str, dict[float, None]] = {}
    for text in texts:
        name, _, numbers = text.rpartition("=")
        try:
            strengths = [s for part in numbers.split(",") for s in _strengths(part)]
        except ValueError:
            strengths = []
        if not (name and strengths and all(map(math.isfinite, strengths))):
            raise Refused(
                f"--edit {text!r}",
                "it is not of the form NAME=STRENGTHS",
                "write for example smile=-1,0.5,1, or smile=-2:2:5 for five from -2 to 2",
            )
        found.setdefault(name, {}).update(dict.fromkeys(strengths))
    return [{"direction": name, "strengths": list(s)} for name, s in found.items()]


def _strengths(text: str) -> list[float]:
    """Parse one number, or a range of evenly spaced numbers that includes both ends.

    The numbers are rounded to 6 decimals, so that the middle of a symmetric range is 0.

    Raises:
        ValueError: If the text has another form.
    """
    if ":" not in text:
        return [float(text)]
    first, last, number = text.split(":")
    begin, end, count = float(first), float(last), int(number)
    if count < 2:
        raise ValueError("a range has at least two numbers")
    step = (end - begin) / (count - 1)
    return [round(begin + step * i, 6) + 0.0 for i in range(count)]
