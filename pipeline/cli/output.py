"""What the commands share: JSON or a table on stdout, and how an error ends a command."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from dhr_batch.pipeline.errors import CommandError, Refused

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def print_json(rows: Sequence[BaseModel]) -> None:
    click.echo(json.dumps([row.model_dump(mode="json") for row in rows], indent=2))


def table_of(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, overflow="fold")
    return table


def show(table: Table) -> None:
    from rich.console import Console

    # A pipe has no width; paths and licences must not be cut or wrapped at 80 columns there.
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


class Command(click.Command):
    """A command that reports what ends it, in one layout on stderr, and exits with its code.

    Commands below it are included. An exception that no input explains gives a traceback.
    """

    def main(self, args: Sequence[str] | None = None, *names: Any, **extra: Any) -> Any:
        """Run the command and end the process. See `click.Command.main`."""
        words = sys.argv[1:] if args is None else list(args)
        try:
            code = super().main(words, *names, **extra | {"standalone_mode": False})
        except NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            ignore_signals()
            known = CommandError("interrupted", way_out="the same command goes on from here")
            known.exit_code = 130
        except Exception as error:
            if (found := stated(error)) is None:
                raise
            known = found
        else:
            sys.exit(code if isinstance(code, int) else 0)
        # Benchmarks have a --json that takes a file.
        flag = all(getattr(p, "is_flag", False) for p in self.params if "--json" in p.opts)
        report(known, as_json=flag and "--json" in words)


class Group(Command, click.Group):
    """A group of commands that reports what ends any of them."""


def stated(error: Exception) -> CommandError | None:
    """An exception as the error of a command; None for a mistake in the program."""
    if isinstance(error, CommandError):
        return error
    if isinstance(error, click.UsageError):
        way_out = f"see: {error.ctx.command_path} --help" if error.ctx else ""
        return Refused(error.format_message().rstrip("."), way_out=way_out)
    if isinstance(error, OSError):
        if error.filename is None:
            return CommandError(str(error))
        way_out = "check the place and its permissions, or choose another one"
        return CommandError(str(error.filename), error.strerror or "", way_out)
    # Stages import nothing of the pipeline: their errors about the input carry the code only.
    return Refused(str(error)) if getattr(error, "exit_code", None) == Refused.exit_code else None


def report(error: CommandError, as_json: bool) -> NoReturn:
    """Write an error to stderr, as one line of JSON or as text, and exit."""
    if as_json:
        parts = {"what": error.what, "why": error.why, "way_out": error.way_out}
        click.echo(json.dumps({"error": parts, "exit_code": error.exit_code}), err=True)
    else:
        click.echo(f"Error: {error.reason}", err=True)
        if error.way_out:
            click.echo(f"Hint: {error.way_out}", err=True)
    sys.exit(error.exit_code)


def ignore_signals() -> None:
    """For what is about to exit: one more would end it on its way out, with another code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
