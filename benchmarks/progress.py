"""The time left that a run shows on a terminal, against the time that it then takes.

python -m dhr_batch.benchmarks.progress [--dataset NAME] [--json FILE] [-- OPTIONS OF run]

Runs the images of a data set on a pseudo-terminal of 80 columns. Prints what the terminal shows and
what is true at each tenth of the time in which images are computed, how soon the first character
comes, and the longest time without any.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from dhr_batch.benchmarks import machine
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.units import duration

COLUMNS = 80
_UNITS = {"h": 3600.0, "min": 60.0, "s": 1.0}
_LEFT = re.compile(r"(\d+)/(\d+) images(.*?) +([\d.]+ (?:h|min|s)(?: \d\d (?:min|s))?) left(.*)")
_CODES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


def seconds(text: str) -> float:
    """Return the seconds of a text of `units.duration`.

    >>> seconds("1 min 20 s"), seconds("4.2 s"), seconds("5 h 07 min")
    (80.0, 4.2, 18420.0)
    """
    words = text.split()
    return sum(float(n) * _UNITS[unit] for n, unit in zip(words[::2], words[1::2], strict=True))


def on_terminal(command: list[str]) -> list[tuple[float, str]]:
    """Run a command on a pseudo-terminal, and return what it wrote and when.

    Raises:
        click.ClickException: If it fails.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    began, written = time.monotonic(), []
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        while True:
            if not select.select([ours], [], [], 1.0)[0]:
                continue
            try:
                content = os.read(ours, 65536)
            except OSError:  # The other end is closed.
                break
            written.append((time.monotonic() - began, content.decode(errors="replace")))
    os.close(ours)
    if process.returncode:
        text = _CODES.sub("", "".join(text for _, text in written))
        raise click.ClickException(f"the run ended with {process.returncode}:\n{text[-2000:]}")
    return written


def examine(written: list[tuple[float, str]]) -> dict[str, Any]:
    """Return the estimates at each tenth of the time of the images, and the silences."""
    times = [0.0, *(when for when, _ in written)]
    shown = []
    for when, text in written:
        for line in _CODES.sub("", text).splitlines():
            if found := _LEFT.search(line):
                shown.append((when, seconds(found[4]), line.strip()))
    first, end = shown[0][0], shown[-1][0] + shown[-1][1]
    rows = []
    for tenth in range(1, 10):
        at = first + (end - first) * tenth / 10
        when, left, line = max(own for own in shown if own[0] <= at)
        rows.append(
            {
                "tenth": tenth,
                "elapsed": when,
                "estimate": left,
                "truth": end - when,
                "ratio": left / (end - when),
                "line": line,
            }
        )
    return {
        "first_sign": times[1],
        "longest_silence": max(b - a for a, b in pairwise(times)),
        "widest_line": max(len(line) for *_, line in shown),
        "rows": rows,
    }


@click.command(cls=Command, help=__doc__)
@click.option("--dataset", default="portraits", show_default=True, metavar="NAME")
@machine.json_option
@click.argument("options", nargs=-1)
def main(dataset: str, options: tuple[str, ...], file: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = ["run", "--dataset", dataset, "--out", f"{folder}/run", "--yes", *options]
        found = examine(on_terminal([sys.executable, "-m", "dhr_batch", *words]))
    click.echo(f"{'tenth':>5}{'elapsed':>14}{'shown':>14}{'truth':>14}{'shown/truth':>13}")
    for row in found["rows"]:
        texts = [duration(row[key]) for key in ("elapsed", "estimate", "truth")]
        click.echo(
            f"{row['tenth']:5}" + "".join(f"{t:>14}" for t in texts) + f"{row['ratio']:13.2f}"
        )
    click.echo(f"line at the fifth tenth: {found['rows'][4]['line']}")
    click.echo(
        f"first sign of life after {duration(found['first_sign'])}, longest silence "
        f"{duration(found['longest_silence'])}, widest line {found['widest_line']} columns"
    )
    machine.write_json(found | {"machine": machine.describe()}, file)


if __name__ == "__main__":
    main()
