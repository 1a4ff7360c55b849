"""The command `edit`: edits of single photographs, as picture files."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.pipeline.cli import complete, output
from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli.pulling import on_demand
from dhr_batch.pipeline.errors import CommandError, Refused

if TYPE_CHECKING:
    from dhr_batch.pipeline.datasets.items import Item
    from dhr_batch.pipeline.editing.chain import Chain

_FAILED, _TOO_MANY_FAILED = 1, 3
# The error of a photograph until it is finished.
_INTERRUPTED = {"message": "interrupted"}


@click.command()
@click.argument(
    "photographs", metavar="PHOTO...", nargs=-1, required=True, shell_complete=complete.datasets
)
@cli_options.edits_option("  [default: the edits of the settings]")
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="NAME=FIRST:LAST:COUNT",
    shell_complete=complete.edits,
    help="Edit at several strengths, as a strip and an animation. May be repeated.",
)
@cli_options.selected_options("face")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="edited",
    show_default=True,
    metavar="DIR",
    help="Folder to write the pictures to.",
)
@cli_options.selected_options("preset", "device", "files", "sets", "allow_code")
@click.option("--yes", is_flag=True, help="Download missing models without asking.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def edit(
    photographs: tuple[str, ...],
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit faces in photographs, and write the results as picture files.

    PHOTO is a file, a folder, a glob in quotes, or a dataset. Of each edit, the whole photograph,
    the face before and after it, and the face alone are written. Nothing else is kept; `run`
    computes the same for whole datasets, with tables and a report.

    \b
    Examples:
      dhr-batch edit photo.jpg --edit smile=2 --edit smile=1+age=10
      dhr-batch edit photo.jpg --sweep smile=-2:2:9
      dhr-batch edit team.jpg --face all --edit smile=2 --out smiles

    Exit codes: 0 done, 1 error, 2 usage error or refused, 3 no photograph could be edited, or too
    few (max_quarantined), 130 interrupted (finished pictures are kept).
    """
    # Threads of an operation wait for each other at its end. If other programs use the cores,
    # threads that spin meanwhile take them from each other, and an edit takes minutes instead of
    # one. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    output.log_to_stderr(logging.WARNING)
    chain, items = _loaded(photographs, out, **options)
    results: list[dict[str, Any]] = []
    try:
        for number, item in enumerate(items, 1):
            results.append({"photograph": item.image_id, "files": [], "error": _INTERRUPTED})
            name = item.image_id + (f" ({number} of {len(items)})" if len(items) > 1 else "")
            _edit(chain, item, name, out, results[-1], quiet=as_json)
    except (CommandError, OSError) as error:
        results[-1]["error"] = {"message": str(output.to_command_error(error))}
        raise
    finally:
        # The finished photographs are printed even if an error ends the command before the last.
        if as_json:
            click.echo(json.dumps(results, indent=2))
    lost = sum("class" in (result["error"] or ()) for result in results)
    if lost == len(items) or lost > chain.config.max_quarantined * len(items):
        sys.exit(_TOO_MANY_FAILED)
    sys.exit(_FAILED if any(r["error"] and "class" not in r["error"] for r in results) else 0)


def _loaded(
    places: Sequence[str],
    out: Path,
    edits: Sequence[str],
    sweeps: Sequence[str],
    yes: bool,
    **options: Any,
) -> tuple[Chain, list[Item]]:
    """Find the photographs, and check the settings and the models."""
    with output.waiting("reading the settings"):
        from dhr_batch.pipeline.datasets.items import left_out
        from dhr_batch.pipeline.editing import photographs
        from dhr_batch.pipeline.editing.chain import Chain, configured, planned
        from dhr_batch.pipeline.editing.choice import Choice
        from dhr_batch.pipeline.planning.prepare import check_models
        from dhr_batch.pipeline.storage.connect import connect
        from dhr_batch.pipeline.storage.ownership import require_outside

        choice = Choice.of(edits, sweeps)
        request = cli_options.request(options | {"settings": choice.settings()})
        found = photographs.find(places)
        config = configured(request, found.datasets)
        require_outside(connect(out), [dataset.location for dataset in found.datasets])
    listed = on_demand(output.waiting("listing the photographs")(found.listed), yes)
    if listed.ignored:
        output.say(f"left out: {left_out(listed.ignored)}", err=True)
    with output.waiting("reading the settings"):
        plan = planned(request, config, listed.items, found.aligned)
    check = output.waiting("checking the models")(lambda: check_models(plan, request))
    on_demand(check, yes)
    _check_writable(out.expanduser())
    if config.generator == "tiny":
        output.say("the generator tiny has random weights: its pictures show no faces", err=True)
    items = [item for shard in plan.shards for item in shard.items]
    return Chain(plan, choice), items


def _check_writable(folder: Path) -> None:
    """Make a folder, and check before the work that files can be written to it.

    Raises:
        OSError: They cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "no files can be written to it", str(folder))


def _edit(
    chain: Chain, item: Item, name: str, out: Path, found: dict[str, Any], quiet: bool
) -> None:
    """Edit one photograph, and fill in what `--json` prints.

    Raises:
        OSError: A file cannot be written, or the storage of the photograph is unavailable.
    """
    from dhr_batch.pipeline.editing.files import write
    from dhr_batch.stages.record import ImageFailure

    # The first photograph that can be read loads them.
    doing = name if chain.is_loaded else f"{name}: loading the networks"
    with output.waiting(doing) as show:

        def told(stage: str, step: int, steps: int) -> None:
            show(f"{name}: {stage}" + (f" {step} of {steps}" if steps else ""))

        chain.told = told
        result = chain.edit(item)
    if isinstance(result, ImageFailure):
        output.show_error(CommandError(result.message))
        found["error"] = {"class": result.error_class, "message": result.message}
        return
    # JSON has no NaN.
    metrics = json.loads(json.dumps(result.values()), parse_constant=lambda name: None)
    found |= {"metrics": metrics, "notes": list(result.notes)}
    error = None
    try:
        with output.waiting(f"{name}: writing"):
            for path in write(result.files(), out):
                found["files"].append(str(path))
    except Refused as refused:
        output.show_error(refused)
        error = {"message": str(refused)}
    finally:
        for path in () if quiet else found["files"]:
            output.say(path)
    for note in result.notes:
        output.say(f"{item.image_id}: {note}", err=True)
    found["error"] = error
