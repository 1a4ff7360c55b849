"""The commands `datasets list`, `datasets check` and `datasets synthesize`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.pipeline.cli import complete
from dhr_batch.pipeline.cli.output import add_row, as_json, print_json, say, show, table_of

if TYPE_CHECKING:
    from dhr_batch.pipeline.datasets.check import DatasetCheck


@click.group()
def datasets() -> None:
    """List, check and generate datasets.

    `run --dataset` also accepts a folder, a .tar file, a .parquet file or a URL.
    """


@datasets.command("list")
@as_json
def list_datasets(as_json: bool) -> None:
    """List the named datasets with their state, place and licence."""
    from dhr_batch.pipeline.datasets import named

    rows = named.dataset_statuses()
    if as_json:
        return print_json(rows)
    table = table_of("dataset", "state", "images", "aligned", "place", "licence")
    for row in rows:
        images = str(row.found) if row.state == "ready" else "-"
        aligned = "yes" if row.aligned else "no"
        add_row(table, row.name, row.state, images, aligned, row.folder, row.licence)
    show(table)
    for row in rows:
        if row.message:
            click.echo()
            say(row.message)
    return None


@datasets.command()
@click.argument("name", metavar="NAME|PLACE", shell_complete=complete.datasets)
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Number of images to decode, evenly spread over the dataset.",
)
@as_json
def check(name: str, sample: int, as_json: bool) -> None:
    """Count the images of a dataset and decode a sample of them. No GPU is used.

    Exit codes: 0 usable, 1 something is broken, 2 unknown dataset.
    """
    from dhr_batch.pipeline.datasets.check import check as examine
    from dhr_batch.pipeline.datasets.named import find

    found = examine(find(name), sample)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        _print(found)
    if found.broken:
        sys.exit(1)


@datasets.command()
@click.option(
    "--images",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Number of pictures to generate.",
)
@click.option("--pairs", is_flag=True, help="Also write each picture without its occluder.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of random draws."
)
@click.option(
    "--truncation", type=click.FloatRange(0.1, 1), default=0.7, show_default=True,
    help="Truncation of the codes: 1 for no truncation; smaller values are closer to the mean "
    "face.",
)  # fmt: skip
@click.option(
    "--generator",
    default="mobilestylegan-256",
    show_default=True,
    shell_complete=complete.generators,
    help="Generator that renders the faces.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="Folder to write to.  [default: the folder of the dataset `synthetic`]",
)  # fmt: skip
def synthesize(out: Path | None, images: int, generator: str, **options: Any) -> None:
    """Generate the dataset `synthetic`: faces with occluders.

    A hand, a mask, a frame or a plate with text hides 5 to 40 % of each face. Runs on the dataset
    are compared with the known codes, masks and clean faces. Picture N depends only on the seed
    and on N.

    \b
    Examples:
      dhr-batch datasets synthesize --images 64
      dhr-batch datasets synthesize --images 8 --pairs --out pairs
      dhr-batch run --dataset pairs/synthetic.yaml
    """
    from dhr_batch.pipeline.datasets import synthetic
    from dhr_batch.pipeline.datasets.named import find

    def report(done: int, total: int) -> None:
        if done == total or done % 16 == 0:
            click.echo(f"{done} of {total} pictures", err=True)

    folder = out or synthetic.default_folder(find("synthetic"))
    say(synthetic.write_dataset(folder, images, generator=generator, report=report, **options))


def _print(found: DatasetCheck) -> None:
    from dhr_batch.pipeline.units import counted

    expected = "" if found.expected is None else f" (expected {found.expected})"
    say(f"{found.name}: {counted(found.found, 'image')}{expected} in {found.place}")
    if found.ignored:
        from dhr_batch.pipeline.datasets.items import left_out

        say(f"left out: {left_out(found.ignored)}")
    if found.smallest and found.largest:
        ends = dict.fromkeys((found.smallest, found.largest))
        sizes = " to ".join(f"{w} x {h}" for w, h in ends)
        click.echo(f"{counted(found.sampled, 'image')} decoded: {sizes} pixels")
    for title, findings in (("broken", found.broken), ("noted", found.noted)):
        for finding in findings:
            say(f"{title}: {finding.kind}: {finding.message}")
    if not found.broken:
        click.echo("no problems found")
