"""Commands about one run: `plan`, `status`, `verify`, `render` and `quarantine`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.pipeline.cli import complete
from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli.output import (
    add_row,
    as_json,
    print_json,
    say,
    show,
    show_error,
    table_of,
    waiting,
)
from dhr_batch.pipeline.errors import CommandError, Refused
from dhr_batch.pipeline.printable import printable

if TYPE_CHECKING:
    from dhr_batch.pipeline.planning.plan import Plan
    from dhr_batch.pipeline.planning.request import Request
    from dhr_batch.stages.device import Kind

_RUN = click.argument("run", metavar="RUN", shell_complete=complete.paths)
_CLASS = click.option(
    "--class", "error_class", metavar="NAME", help="Select only failures of this class."
)


@click.command()
@cli_options.plan_options
@as_json
def plan(as_json: bool, **options: Any) -> None:
    """Print what `run` with the same options would do. Nothing is written.

    For a run that was started before, also print what is finished and what differs.

    Exit codes: 0 it would start, 1 error, 2 usage error or refused.
    """
    request = cli_options.request(options)
    with waiting("reading the settings and listing the photographs"):
        from dhr_batch.pipeline.planning.prepare import prepare

        prepared = prepare(request)
    print_plan(prepared, request, as_json)


def print_plan(plan: Plan, request: Request, as_json: bool) -> None:
    """Print a plan, and the progress of the run in its folder.

    Args:
        plan: The plan.
        request: The request of the command.
        as_json: Whether to print JSON instead of text.

    Raises:
        Refused: After printing, if a start would be refused.
    """
    from dhr_batch.pipeline.planning import costs, resume
    from dhr_batch.pipeline.planning.prepare import check_gpus, describe, place
    from dhr_batch.pipeline.runs.folder import RunFolder
    from dhr_batch.pipeline.storage.ownership import RUN, Owned

    run = RunFolder(place(plan, request))
    Owned(run.storage, RUN).check()
    where = run.storage.place
    existing, other = resume.progress(run), None
    if existing or not request.fresh:
        try:
            continued = resume.continued(run, where, plan, request.extend)
            plan = plan if request.fresh else continued
        except resume.OtherRun as error:
            other = error
    finished = existing if existing and not request.fresh else {"images": {}, "shards": {}}
    images = plan.images - sum(finished["images"].get(k, 0) for k in ("done", "quarantined"))
    shards = len(plan.shards) - finished["shards"].get("done", 0)
    expected = costs.expectation(plan.config, images, shards)
    if as_json:
        state = existing and existing | {"changes": other.lines if other else []}
        content = plan.stored().to_json() | {"out": where, "run": state}
        content["expected"] = {"seconds": expected.seconds, "bytes": expected.bytes}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        click.echo(describe(plan, where))
        for line in expected.lines():
            click.echo(line)
        if existing:
            click.echo(_so_far(existing, request.fresh))
    if other and not request.fresh:
        raise other
    check_gpus(plan, request)


def _so_far(existing: dict[str, Any], fresh: bool) -> str:
    shards, images = existing["shards"], existing["images"]
    return (
        f"so far     {shards['done']} of {shards['total']} shards: {images['done']} images done, "
        f"{images['quarantined']} quarantined" + ("; --fresh deletes them" if fresh else "")
    )


@click.command()
@_RUN
@as_json
def status(run: str, as_json: bool) -> None:
    """Show the progress of a run, its workers, and whether its driver is running."""
    from dhr_batch.pipeline.runs.overview import overview

    found = overview(run)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        for line in found.lines():
            say(line)


@click.command()
@_RUN
@as_json
def verify(run: str, as_json: bool) -> None:
    """Compare the files of a run with their checksums, and its rows with the plan.

    Exit codes: 0 no problems in finished shards, 1 problems, 2 not a run, or its plan cannot be
    read.
    """
    from dhr_batch.pipeline.runs.verify import verify as examine

    found = examine(run)
    if as_json:
        click.echo(json.dumps(found.model_dump() | {"complete": found.complete}, indent=2))
    else:
        say(
            f"{found.run}: {found.verified} of {found.shards} shards verified, {found.done} images "
            f"done, {found.quarantined} quarantined, {len(found.problems)} problems"
        )
        for problem in found.problems:
            say(f"problem: {problem.file}: {problem.problem}; {problem.way_out}")
        for note in found.notes:
            say(f"note: {note}")
    if found.problems:
        sys.exit(1)


@click.command()
@_RUN
@click.option(
    "--image", "images", multiple=True, metavar="ID", help="Image to render. May be repeated."
)
@click.option("--all", "everything", is_flag=True, help="Render all images that have rows.")
@cli_options.edits_option()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder to write the pictures to.  [default: RUN-render beside the run]",
)
@cli_options.selected_options("device", "allow_code")
@click.option("--yes", is_flag=True, help="Do not ask before models are downloaded.")
def render(
    run: str,
    images: tuple[str, ...],
    everything: bool,
    edits: tuple[str, ...],
    out: Path | None,
    device: Kind | None,
    allow_code: bool,
    yes: bool,
) -> None:
    """Render images of a run again, or edit them, from its tables.

    Nothing is refined again. Without --edit, the refined pictures are written. The path of every
    picture is printed.

    Exit codes: 0 done, 1 error or an image could not be rendered, 2 usage error or refused.
    """
    from dhr_batch.pipeline.cli import render as cli_render
    from dhr_batch.pipeline.cli.pulling import on_demand
    from dhr_batch.pipeline.models.needed import require
    from dhr_batch.pipeline.runs import results

    if bool(images) == everything:
        raise Refused(
            "--all with --image" if images else "no images",
            "exactly one of --image and --all is needed",
            "name the images with --image ID, or choose all of them with --all",
        )
    failed = False
    chosen = [cli_render.checked(text) for text in edits]
    opened = results.open(run)
    opened.device, opened.allow_code = device, allow_code
    ids = opened.ids if everything else opened.select(images)
    folder = out or cli_render.beside(opened)
    on_demand(lambda: require(cli_render.models(opened, chosen)), yes)
    for result in cli_render.write_pictures(opened, ids, edits, folder):
        if isinstance(result, CommandError):
            failed = True
            show_error(result)
        else:
            say(result)
    sys.exit(1 if failed else 0)


@click.group()
def quarantine() -> None:
    """List failed images of a run and retry them."""


@quarantine.command("list")
@_RUN
@_CLASS
@as_json
def list_quarantine(run: str, error_class: str | None, as_json: bool) -> None:
    """List the images that failed, with stage, class and message."""
    from dhr_batch.pipeline.runs.quarantine import quarantined

    rows = quarantined(run, error_class)
    if as_json:
        return print_json(rows)
    if not rows:
        return click.echo("no image is in quarantine")
    table = table_of("image", "stage", "class", "message")
    for row in rows:
        waiting = " (to be retried)" if row.waiting else ""
        add_row(table, row.image_id, row.stage, row.error_class, row.message + waiting)
    return show(table)


@quarantine.command()
@_RUN
@_CLASS
@click.option("--yes", is_flag=True, help="Do not ask.")
def retry(run: str, error_class: str | None, yes: bool) -> None:
    """Let the next start of a run retry quarantined images.

    Their shards are computed again as a whole. The files of these images may have changed, for
    example because they were repaired. All other images must be unchanged.
    """
    from dhr_batch.pipeline import outside
    from dhr_batch.pipeline.planning.command import goes_on
    from dhr_batch.pipeline.runs.folder import RunFolder
    from dhr_batch.pipeline.runs.quarantine import quarantined, requeue
    from dhr_batch.pipeline.units import counted

    rows = quarantined(run, error_class)
    if not rows:
        click.echo("no image is in quarantine")
        return
    shards = counted(len({row.shard for row in rows}), "shard")
    question = f"Compute {shards} of {run} again, for {counted(len(rows), 'quarantined image')}?"
    if not yes and not (sys.stdin.isatty() and click.confirm(printable(question), err=True)):
        raise Refused(
            "retry",
            f"it was not confirmed, so nothing was changed: {question}",
            "confirm with --yes",
        )
    rows = requeue(run, error_class)
    folder = RunFolder(run)
    plan = folder.started_plan()
    # To find the command, the classes of the stages are imported, which may be foreign code.
    own = not outside.members(plan.settings.values)
    command = goes_on(plan, folder.storage.place) if own else "the command that started it"
    click.echo(f"to be retried: {counted(len(rows), 'image')} in {shards}; now run:")
    say(command)
