"""The output of commands: JSON or a table on stdout, and errors on stderr."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from dhr_batch.pipeline.errors import CommandError, Refused
from dhr_batch.pipeline.printable import LogFormatter, printable, without_secrets

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import ConsoleRenderable, RenderableType
    from rich.table import Table

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def print_json(rows: Sequence[BaseModel]) -> None:
    """Print models as a JSON array."""
    click.echo(json.dumps([row.model_dump(mode="json") for row in rows], indent=2))


def say(*texts: object, err: bool = False) -> None:
    """Print one line. Control codes in the texts are shown as text.

    Args:
        *texts: One text, or several that are separated by tabs.
        err: Whether to print to stderr.
    """
    click.echo("\t".join(printable(without_secrets(str(text))) for text in texts), err=err)


@contextmanager
def waiting(what: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what a command is waiting for, until the block ends.

    Nothing may be printed meanwhile.

    Args:
        what: What the command does.
        quiet: Whether to show nothing.

    Yields:
        A function that replaces the text.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(f"{printable(what)} ...")) as status:
        yield lambda text: status.update(Text(f"{printable(text)} ..."))


def table_of(*columns: str) -> Table:
    """Return an empty table with these columns."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, overflow="fold")
    return table


def add_row(table: Table, *cells: object, **styles: str) -> None:
    """Add a row whose cells are plain text, never markup.

    Args:
        table: A table of `table_of`.
        *cells: A cell for each column.
        **styles: The styles of cells, by the names of their columns.
    """
    from rich.text import Text

    texts = (printable(without_secrets(str(cell))) for cell in cells)
    heads = (str(column.header) for column in table.columns)
    table.add_row(*(Text(t, styles.get(h, "")) for t, h in zip(texts, heads, strict=True)))


def show(table: Table) -> None:
    """Print a table."""
    from rich.console import Console

    # A pipe has no width. Paths and licences must not be cut or wrapped at 80 columns in it.
    width = None if sys.stdout.isatty() else 200
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    console.print(fitting(table, console.width) if width is None else table)


def fitting(table: Table, width: int) -> ConsoleRenderable:
    """Return a table in the layout that takes fewer lines of a terminal.

    Many or long cells leave columns of a few letters. The rows are then printed one below the
    other, each with a line for every cell.

    Args:
        table: A table of `table_of`.
        width: The columns of the terminal.
    """
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.styled import Styled
    from rich.table import Column, Table

    heads = [str(column.header) for column in table.columns]
    rows: list[RenderableType] = []
    for first, *cells in zip(*(column.cells for column in table.columns), strict=True):
        lines = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2, 0, 0))
        for head, cell in zip(heads[1:], cells, strict=True):
            if str(cell):
                lines.add_row(head, cell)
        rows += [Styled(first, "bold"), Padding(lines, (0, 0, 0, 2))]
    layouts: tuple[ConsoleRenderable, ...] = (table, Group(*rows))
    return min(layouts, key=lambda layout: len(Console(width=width).render_lines(layout)))


def log_to_stderr(level: int) -> None:
    """Print log messages of at least this level to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


class Command(click.Command):
    """A command that reports its errors, and those of its subcommands, in one layout.

    Errors are printed to stderr and determine the exit code. An exception that is a mistake in the
    program prints a traceback.
    """

    def main(self, args: Sequence[str] | None = None, *names: Any, **extra: Any) -> Any:
        """Run the command and end the process. See `click.Command.main`."""
        words = sys.argv[1:] if args is None else list(args)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Letters that the terminal cannot show are printed as escapes, as on stderr.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            _require_current_folder()
            _require_no_empty(words)
            code = super().main(words, *names, **extra | {"standalone_mode": False})
        except NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            ignore_signals()
            reported = CommandError("interrupted")
            reported.exit_code = 130
        except Exception as error:
            if (found := to_command_error(error)) is None:
                raise
            reported = found
        else:
            sys.exit(code if isinstance(code, int) else 0)
        # The --json of measurements in benchmarks/ takes a file.
        flag = all(getattr(p, "is_flag", False) for p in self.params if "--json" in p.opts)
        report(reported, as_json=flag and "--json" in words)


def _require_current_folder() -> None:
    """Check that the current folder exists. Without it, libraries such as torch end the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise Refused(
            "the current folder", f"it cannot be used: {error.strerror}", "change to another one"
        ) from error


def _require_no_empty(words: Sequence[str]) -> None:
    """Check that no argument is empty, as a path would then mean the current folder."""
    for before, word in zip(["", *words], [*words, "x"], strict=True):
        if not word.strip():
            raise Refused(
                f"an empty text after {before}" if before else "an empty text",
                "it names nothing; maybe a variable of the shell is not set",
                "give a value, or leave it out",
            )


class Group(Command, click.Group):
    """A group of commands that reports the errors of all of them."""


def to_command_error(error: Exception) -> CommandError | None:
    """Convert an exception to the error of a command; None for a mistake in the program."""
    if isinstance(error, CommandError):
        return error
    if isinstance(error, click.UsageError):
        return Refused(error.format_message().rstrip("."), way_out=_usage(error))
    if isinstance(error, OSError):
        if error.filename is None:
            return CommandError(str(error))
        way_out = "check the path and its permissions, or choose another one"
        return CommandError(str(error.filename), error.strerror or "", way_out)
    # Stages cannot import `CommandError`: their errors about the input have the exit code, and some
    # have the remedy (`stages.registry.InvalidInput`).
    if getattr(error, "exit_code", None) != Refused.exit_code:
        return None
    return Refused(getattr(error, "reason", str(error)), way_out=getattr(error, "way_out", ""))


def _usage(error: click.UsageError) -> str:
    """Return the remedy of a wrong command line. Options of other commands may be settings here."""
    if error.ctx is None:
        return ""
    own = {param.name for param in error.ctx.command.params}
    if isinstance(error, click.NoSuchOption) and "sets" in own:
        from dhr_batch.pipeline.planning.config import Config

        name = error.option_name.lstrip("-").replace("-", "_")
        if name in ("edit", "edits", "sweep"):
            return "give the edits of a run as a setting: --set edit.edits='[{direction: smile}]'"
        if name in Config.model_fields:
            return f"give it as a setting: --set {name}=VALUE"
    # Only further arguments raise the error as such.
    if type(error) is click.UsageError and "dataset" in own:
        return "give the photographs as --dataset FOLDER"
    return f"see: {error.ctx.command_path} --help"


def report(error: CommandError, as_json: bool) -> NoReturn:
    """Write an error to stderr, as one line of JSON or as text, and exit."""
    if as_json:
        parts = {"what": error.what, "why": error.why, "way_out": error.way_out}
        click.echo(json.dumps({"error": parts, "exit_code": error.exit_code}), err=True)
    else:
        show_error(error)
    sys.exit(error.exit_code)


def show_error(error: CommandError) -> None:
    """Write an error to stderr as text."""
    # Explanations may have several lines. The name of a file must not begin a line of its own,
    # which could look like a message.
    why, way_out = (printable(text, keep="\n") for text in (error.why, error.way_out))
    click.echo(f"Error: {': '.join(filter(None, (printable(error.what), why)))}", err=True)
    if way_out:
        click.echo(f"Hint: {way_out}", err=True)


def ignore_signals() -> None:
    """Ignore signals from now on, so that another one does not change the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
