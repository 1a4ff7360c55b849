"""The command `export`."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.storage.ownership import listed

if TYPE_CHECKING:
    from dhr_batch.pipeline.export.options import ExportOutcome

T = TypeVar("T")

_FORMATS = ("imagefolder", "webdataset", "parquet", "hf", "stylegan-zip")


def pattern(_context: object, _parameter: object, value: str | None) -> str | None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise click.BadParameter(f"{value!r} is not a regular expression: {error}") from error
    return value


def _folder(_context: object, _parameter: object, value: str) -> Path:
    if "://" in value:
        raise click.BadParameter("exports are written to a folder: upload it afterwards")
    return Path(value)


def _kinds(_context: object, _parameter: object, value: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in kinds:
        if name not in ("refined", "source"):
            raise click.BadParameter(f"{name!r}: choose from refined, source")
    return kinds


def _cosine(_context: object, _parameter: object, value: float | None) -> float | None:
    if value is not None and not -1 <= value <= 1:
        raise click.BadParameter(f"{value:g} is not a cosine: these lie between -1 and 1")
    return value


def _share(_context: object, _parameter: object, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("a share lies between 0 and 1")
    return value


def _once(option: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise Refused(f"{option} {name}", "it is given twice", "put both limits into one")
        found[name] = value
    return found


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, type=click.Path(file_okay=False), callback=_folder,
              help="Folder that is made.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(_FORMATS), default="imagefolder",
              show_default=True)  # fmt: skip
@click.option("--include", callback=_kinds, default="", metavar="KINDS",
              help="Besides edits: refined, source (the aligned photograph), or both.")  # fmt: skip
@click.option("--min-identity", type=float, callback=_cosine, metavar="COSINE",
              help="Least similarity to the photograph's face, 1 is the same. The network is the "
              "first of measure.identity.")  # fmt: skip
@click.option("--effect", "effects", multiple=True, metavar="EDIT=LOW:HIGH",
              help="Only pictures of this edit that changed the score of its name by LOW to HIGH; "
              "either may be left out. May be repeated.")  # fmt: skip
@click.option("--max", "most", multiple=True, metavar="METRIC=X",
              help="Only pictures whose metric is at most X, such as st_lpips_alex or change_out. "
              "May be repeated.")  # fmt: skip
@click.option("--keep-faceless", is_flag=True,
              help="Keep pictures in which the run found no face.")  # fmt: skip
@click.option("--balance", metavar="LABEL",
              help="As many pictures of each edit, label, or bin of effect:BINS, identity:BINS, "
              "score_NAME:BINS, in each split.")  # fmt: skip
@click.option("--val", type=click.FloatRange(0, 1), callback=_share, default=0.0,
              show_default=True, help="Share of the photographs for validation.")  # fmt: skip
@click.option("--person", callback=pattern, metavar="REGEX",
              help="Part of an image's id that names the person, so that several photographs of "
              "one are on one side.  [default: all of it]")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of split and balance.")
@click.option("--paste-back", is_flag=True,
              help="Put edits back into the uncropped photographs, read again.")  # fmt: skip
@click.option("--dataset", metavar="NAME|PLACE",
              help="Where the photographs are, if not where the run had them.")  # fmt: skip
@click.option("--encoding", type=click.Choice(["png", "jpeg", "webp"]), default="png",
              show_default=True)  # fmt: skip
@click.option("--fresh", is_flag=True, help="Replace an earlier export of the same run.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def export(run: str, out: Path, format_: str, as_json: bool, **options: Any) -> None:
    """Export edited pictures of a run, with labels, as a dataset to train on.

    \b
    Examples:
      dhr-batch export runs/photos --out smiles --effect smile=0.1: --min-identity 0.95
      dhr-batch export runs/photos --out aug --include source --val 0.1 --balance edit
      dhr-batch export runs/photos --out edited --paste-back --encoding jpeg

    \b
    Exit codes: 0 done, 1 error, 2 usage or refused.
    """
    from dhr_batch.pipeline.export import choice, pictures
    from dhr_batch.pipeline.export.options import Options
    from dhr_batch.pipeline.export.write import write_export

    if options["balance"]:
        choice.parse_balance(options["balance"])
    chosen = Options(
        format=format_,
        include=options["include"],
        filters=pictures.Filters(
            min_identity=options["min_identity"],
            effects=_once("--effect", map(pictures.parse_effect, options["effects"])),
            most=_once("--max", map(pictures.parse_limit, options["most"])),
            faces=not options["keep_faceless"],
        ),
        balance=options["balance"],
        validation=options["val"],
        person=options["person"],
        seed=options["seed"],
        paste_back=options["paste_back"],
        dataset=options["dataset"],
        encoding=options["encoding"],
        fresh=options["fresh"],
    )
    outcome = _with_bar(lambda tick: write_export(run, out, chosen, tick))
    if as_json:
        click.echo(json.dumps(outcome.to_json(), indent=2))
    else:
        click.echo("\n".join(lines(outcome)))


def _with_bar(work: Callable[[Callable[[int, int], None]], ExportOutcome]) -> ExportOutcome:
    """The outcome of some work, which tells how far it is; shown on a terminal only."""
    if not sys.stderr.isatty():
        return work(lambda done, of: None)
    with click.progressbar(length=1, label="exporting", file=sys.stderr) as bar:

        def tick(done: int, of: int) -> None:
            bar.length = of
            bar.update(done - bar.pos)

        return work(tick)


def lines(outcome: ExportOutcome) -> list[str]:
    """What the command prints."""
    splits = ", ".join(
        f"{name} {counts.total()}" for name, counts in sorted(outcome.counts.items())
    )
    found = [
        f"exported   {outcome.pictures} pictures of {outcome.photographs} photographs: {splits}",
        *(f"dropped    {count}: {reason}" for reason, count in outcome.dropped.most_common()),
    ]
    missing = outcome.planned - outcome.images
    if missing:
        found.append(f"missing    {missing} of {outcome.planned} photographs of the run: no rows")
    if outcome.note:
        found.append(f"note       {outcome.note}")
    if outcome.left:
        found.append(f"left       files that no export wrote: {listed(outcome.left)}")
    return [*found, f"output     {outcome.out}"]
