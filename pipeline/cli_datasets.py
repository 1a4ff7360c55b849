"""The command `datasets`: what there is, and whether it can be used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from dhr_batch.pipeline.cli_output import as_json, errors, print_json, show, table_of

if TYPE_CHECKING:
    from dhr_batch.pipeline.check import Check


@click.group()
def datasets() -> None:
    """Named sets of photographs. `run --dataset` also takes a folder, a .tar, a .parquet, a URL."""


@datasets.command("list")
@as_json
def list_datasets(as_json: bool) -> None:
    """Show every named dataset: whether it is here, where it is looked for, its licence."""
    from dhr_batch.pipeline import datasets as named

    with errors():
        rows = named.listing()
    if as_json:
        return print_json(rows)
    table = table_of("dataset", "state", "images", "aligned", "place", "licence")
    for row in rows:
        images = str(row.found) if row.state == "ready" else "-"
        aligned = "yes" if row.aligned else "no"
        table.add_row(row.name, row.state, images, aligned, row.folder, row.licence)
    show(table)
    for row in rows:
        if row.message:
            click.echo(f"\n{row.message}")
    return None


@datasets.command()
@click.argument("name", metavar="NAME|PLACE")
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Images to decode, evenly spread over the dataset.",
)
@as_json
def check(name: str, sample: int, as_json: bool) -> None:
    """Count a dataset's images and decode a sample, before a run takes any GPU.

    \b
    Exit codes: 0 usable, 1 something is broken, 2 unknown dataset.
    """
    from dhr_batch.pipeline.check import check as examine
    from dhr_batch.pipeline.datasets import UnknownDataset, find

    with errors():
        try:
            found = examine(find(name), sample)
        except UnknownDataset as error:
            raise click.UsageError(str(error)) from error
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        _print(found)
    if found.broken:
        sys.exit(1)


def _print(found: Check) -> None:
    expected = "" if found.expected is None else f" (expected {found.expected})"
    click.echo(f"{found.name}: {found.found} images{expected} in {found.place}")
    if found.ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.ignored.items()))
        click.echo(f"ignored by extension: {kinds}")
    if found.smallest and found.largest:
        sizes = " to ".join(f"{w} x {h}" for w, h in (found.smallest, found.largest))
        click.echo(f"{found.sampled} images decoded: {sizes} pixels")
    for title, findings in (("broken", found.broken), ("noted", found.noted)):
        for finding in findings:
            click.echo(f"{title}: {finding.kind}: {finding.message}")
    if not found.broken:
        click.echo("nothing broken was found")
