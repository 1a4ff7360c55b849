"""Starting a run from a command: plan, ask, run, and end with its exit code."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from typing import Any

import click

from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli.output import ignore_signals
from dhr_batch.pipeline.errors import Refused


def start(dry_run: bool, as_json: bool, yes: bool, **options: Any) -> None:
    """Plan and run. options: as `cli_options.request` takes them.

    Ends the process with the exit code of `run`, unless it is a dry run.
    """
    from dhr_batch.pipeline.planning.prepare import place, prepare
    from dhr_batch.pipeline.storage.ownership import RUN, Owned

    if options["fresh"] and options["extend"]:
        raise Refused(
            "--fresh with --extend", "it deletes the run that --extend would add to", "give one"
        )
    logging.basicConfig(level=logging.INFO if options["verbose"] else logging.WARNING)
    request = cli_options.request(options | {"confirmed": yes})
    plan = prepare(request)
    out = place(plan, request)
    Owned(out, RUN).check()
    if options["verbose"]:
        click.echo(plan.config.to_yaml(), err=True)
    if dry_run:
        from dhr_batch.pipeline.cli.runs import print_plan

        print_plan(plan, request, as_json)
        return
    if request.fresh and not yes:
        request = replace(request, confirmed=_confirm(out))
    from dhr_batch.pipeline.engine.runner import INTERRUPTED, run

    outcome = run(plan, request)
    if outcome.exit_code == INTERRUPTED:
        ignore_signals()
    if as_json:
        click.echo(json.dumps(outcome.to_json(), indent=2))
    else:
        click.echo(outcome.report or outcome.out)
    sys.exit(outcome.exit_code)


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def _confirm(out: Any) -> bool:
    """Ask before work is deleted; False, without asking, where nobody can answer."""
    from dhr_batch.pipeline.planning.resume import question
    from dhr_batch.pipeline.runs.folder import RunFolder

    if not _has_terminal():
        return False
    asked = question(RunFolder(out), out.place)
    if asked is None or click.confirm(asked, err=True):
        return True
    raise Refused("nothing was deleted")
