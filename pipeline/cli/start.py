"""The start of a run by a command: plan, ask for confirmation, run, exit."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli.output import ignore_signals, log_to_stderr, say, waiting
from dhr_batch.pipeline.cli.pulling import has_terminal, on_demand
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.printable import printable

if TYPE_CHECKING:
    from dhr_batch.pipeline.planning.plan import Plan


def start(dry_run: bool, as_json: bool, yes: bool, **options: Any) -> None:
    """Plan and run. The process ends with the exit code of the run, except after a dry run.

    Args:
        dry_run: Whether to print the plan only.
        as_json: Whether to print the result as JSON.
        yes: Whether to download models, and to delete files for `--fresh`, without asking.
        **options: The arguments of `cli_options.request`.
    """
    if options["fresh"] and options["extend"]:
        raise Refused(
            "--fresh with --extend",
            "--fresh deletes the run to which --extend would add images",
            "give only one of them",
        )
    log_to_stderr(logging.INFO if options["verbose"] else logging.WARNING)
    quiet = options["quiet"] or options["progress"] in ("plain", "none")

    def planned() -> Plan:
        with waiting("reading the settings and listing the photographs", quiet):
            from dhr_batch.pipeline.planning.prepare import prepare
            from dhr_batch.pipeline.storage.connect import connect

            if request.out is not None:
                # A file is refused at once. A listing may take minutes.
                connect(request.out)
            return prepare(request)

    request = cli_options.request(options | {"confirmed": yes})
    plan = planned() if dry_run else on_demand(planned, yes)
    from dhr_batch.pipeline.planning.prepare import check_models, place
    from dhr_batch.pipeline.storage.ownership import RUN, Owned

    out = place(plan, request)
    Owned(out, RUN).check()
    if options["verbose"]:
        click.echo(plan.config.to_yaml(), err=True)
    if dry_run:
        from dhr_batch.pipeline.cli.runs import print_plan

        print_plan(plan, request, as_json)
        return
    on_demand(lambda: check_models(plan, request), yes)
    if request.fresh and not yes:
        request = replace(request, confirmed=_confirm(out))
    with waiting("starting", quiet):
        from dhr_batch.pipeline.engine.runner import INTERRUPTED, run

    outcome = run(plan, request)
    if outcome.exit_code == INTERRUPTED:
        ignore_signals()
    if as_json:
        click.echo(json.dumps(outcome.to_json(), indent=2))
    else:
        say(outcome.report or outcome.out)
    sys.exit(outcome.exit_code)


def _confirm(out: Any) -> bool:
    """Ask before files are deleted. Returns False, without asking, if there is no terminal.

    Raises:
        Refused: If the answer is no.
    """
    from dhr_batch.pipeline.planning.resume import question
    from dhr_batch.pipeline.runs.folder import RunFolder

    if not has_terminal():
        return False
    text = question(RunFolder(out), out.place)
    if text is None or click.confirm(printable(text), err=True):
        return True
    raise Refused(
        "--fresh",
        "it was not confirmed, so nothing was deleted",
        "confirm it, or leave it out",
    )
