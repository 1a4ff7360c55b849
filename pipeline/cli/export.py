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

from dhr_batch.pipeline.cli.output import say
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.storage.ownership import listed

if TYPE_CHECKING:
    from dhr_batch.pipeline.export.options import ExportOutcome

T = TypeVar("T")

_FORMATS = ("imagefolder", "webdataset", "parquet", "hf", "stylegan-zip")


def pattern(_context: object, _parameter: object, value: str | None) -> str | None:
    """Check that the value of an option is a regular expression. For `callback` of an option."""
    try:
        re.compile(value or "")
    except re.error as error:
        raise click.BadParameter(f"{value!r} is not a regular expression: {error}") from error
    return value


def _folder(_context: object, _parameter: object, value: str) -> Path:
    if "://" in value:
        raise click.BadParameter("exports are written to a local folder: upload it afterwards")
    return Path(value)


def _kinds(_context: object, _parameter: object, value: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in kinds:
        if name not in ("refined", "source"):
            raise click.BadParameter(f"{name!r} is unknown: choose from refined, source")
    return kinds


def _cosine(_context: object, _parameter: object, value: float | None) -> float | None:
    if value is not None and not -1 <= value <= 1:
        raise click.BadParameter(f"{value:g} is not a cosine: give a number from -1 to 1")
    return value


def _share(_context: object, _parameter: object, value: float) -> float:
    if math.isnan(value):
        raise click.BadParameter("nan is not a share: give a number from 0 to 1")
    return value


def _unique(option: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, value in pairs:
        if name in found:
            raise Refused(f"{option} {name}", "it is given twice", "combine both limits in one")
        found[name] = value
    return found


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--out", required=True, callback=_folder, metavar="DIR", help="Folder to write to.")
@click.option("--format", "format_", type=click.Choice(_FORMATS), default="imagefolder",
              show_default=True, help="Format of the dataset.")  # fmt: skip
@click.option("--edit", "edits", multiple=True, metavar="NAME",
              help="Export only pictures of this edit of the run. May be repeated.")  # fmt: skip
@click.option("--strength", "strengths", multiple=True, metavar="X|LOW:HIGH",
              help="Export only edits of this strength, or of strengths from LOW to HIGH. Either "
              "limit may be omitted. May be repeated.")  # fmt: skip
@click.option("--include", callback=_kinds, default="", metavar="KINDS",
              help="Pictures to export besides the edits: refined, source (the aligned photograph) "
              "or refined,source.")  # fmt: skip
@click.option("--min-identity", type=float, callback=_cosine, metavar="COSINE",
              help="Export only pictures whose face is at least this similar to the photograph's, "
              "from -1 to 1 (same). Measured with the first network of "
              "measure.identity.")  # fmt: skip
@click.option("--effect", "effects", multiple=True, metavar="EDIT=LOW:HIGH",
              help="Export only pictures of this edit that changed its score by LOW to HIGH. "
              "Either limit may be omitted. May be repeated.")  # fmt: skip
@click.option("--max", "most", multiple=True, metavar="METRIC=X",
              help="Export only pictures whose metric, such as st_lpips_alex or change_out, is at "
              "most X. May be repeated.")  # fmt: skip
@click.option("--keep-faceless", is_flag=True,
              help="Also export pictures in which no face was found.")  # fmt: skip
@click.option("--balance", metavar="LABEL",
              help="Export the same number of pictures for each value of a label, in each split. "
              "Numbers are divided into bins: effect:BINS, identity:BINS, score_NAME:BINS, "
              "change_NAME:BINS (such as change_age:4, the years by which edits moved the "
              "age).")  # fmt: skip
@click.option("--val", type=click.FloatRange(0, 1), callback=_share, default=0.0,
              show_default=True, help="Share of the photographs for validation.")  # fmt: skip
@click.option("--strict", is_flag=True,
              help="Export nothing and exit with 2 if a split would be empty.")  # fmt: skip
@click.option("--person", callback=pattern, metavar="REGEX",
              help="Part of an image's id that names the person. All photographs of a person are "
              "in the same split.  [default: the whole id]")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="Seed of the splits and of --balance.")  # fmt: skip
@click.option("--paste-back", is_flag=True,
              help="Paste the edits into the uncropped photographs, which are read "
              "again.")  # fmt: skip
@click.option("--dataset", metavar="NAME|PLACE",
              help="Place of the photographs, if they were moved since the run.")  # fmt: skip
@click.option("--encoding", type=click.Choice(["png", "jpeg", "webp"]), default="png",
              show_default=True, help="Image format of the pictures.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Replace an earlier export of the same run.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def export(run: str, out: Path, format_: str, as_json: bool, **options: Any) -> None:
    """Export edited pictures of a run as a labelled dataset.

    \b
    Examples:
      dhr-batch export runs/photos --out smiles --edit smile --effect smile=0.1:
      dhr-batch export runs/photos --out aug --include source --val 0.1
      dhr-batch export runs/photos --out edited --paste-back --encoding jpeg

    Exit codes: 0 done, 1 error, 2 usage error or refused.
    """
    from dhr_batch.pipeline.export import choice, filters
    from dhr_batch.pipeline.export.options import Options
    from dhr_batch.pipeline.export.write import write_export

    if options["balance"]:
        choice.parse_balance(options["balance"])
    chosen = Options(
        format=format_,
        include=options["include"],
        filters=filters.Filters(
            edits=options["edits"],
            strengths=tuple(map(filters.parse_strength, options["strengths"])),
            min_identity=options["min_identity"],
            effects=_unique("--effect", map(filters.parse_effect, options["effects"])),
            most=_unique("--max", map(filters.parse_limit, options["most"])),
            faces=not options["keep_faceless"],
        ),
        balance=options["balance"],
        validation=options["val"],
        strict=options["strict"],
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
        if outcome.note:
            say(f"note: {outcome.note}", err=True)
    else:
        for line in lines(outcome):
            say(line)


def _with_bar(work: Callable[[Callable[[int, int], None]], ExportOutcome]) -> ExportOutcome:
    """Export with a progress bar, if stderr is a terminal."""
    if not sys.stderr.isatty():
        return work(lambda done, total: None)
    with click.progressbar(length=1, label="exporting", file=sys.stderr) as bar:

        def tick(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        return work(tick)


def lines(outcome: ExportOutcome) -> list[str]:
    """Return what the command prints."""
    splits = ", ".join(
        f"{name} {counts.total()}" for name, counts in sorted(outcome.counts.items())
    )
    found = [
        f"exported   {outcome.pictures} pictures of {outcome.photographs} photographs: {splits}",
        *(f"dropped    {count}: {reason}" for reason, count in outcome.dropped.most_common()),
    ]
    missing = outcome.planned - outcome.images
    if missing:
        found.append(
            f"missing    {missing} of {outcome.planned} photographs: the run has no rows of them"
        )
    if outcome.note:
        found.append(f"note       {outcome.note}")
    if outcome.left:
        found.append(f"kept       files that no export wrote: {listed(outcome.left)}")
    return [*found, f"output     {outcome.out}"]
