"""What the commands share: JSON or a table on stdout, and exit codes for errors."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

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


@contextmanager
def errors() -> Iterator[None]:
    """Exit code 2 for a name that does not exist, 1 for everything else that is no bug."""
    from dhr_batch.pipeline.datasets.items import DatasetError
    from dhr_batch.pipeline.models.catalogue import RegistryError, UnknownModel

    try:
        yield
    except UnknownModel as error:
        raise click.UsageError(str(error)) from error
    except (RegistryError, DatasetError, OSError) as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def refusals() -> Iterator[None]:
    """Exit code 2 for what is asked wrongly, 1 for what cannot be used now."""
    from dhr_batch.pipeline.datasets.items import DatasetError
    from dhr_batch.pipeline.errors import Refused, StorageError
    from dhr_batch.pipeline.models.catalogue import RegistryError
    from dhr_batch.pipeline.planning.config import ConfigError

    try:
        yield
    except (ConfigError, DatasetError, Refused) as error:
        fail(str(error), 2)
    except (RegistryError, StorageError) as error:
        fail(str(error), 1)


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def interrupted() -> NoReturn:
    """Exit code 130, whatever signals follow."""
    ignore_signals()
    fail("interrupted; the same command goes on from here", 130)


def ignore_signals() -> None:
    """For what is about to exit: one more would end it on its way out, with another code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
