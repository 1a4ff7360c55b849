"""The download of models: one question that all commands share, and its progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from dhr_batch.pipeline.cli.output import say
from dhr_batch.pipeline.printable import printable

if TYPE_CHECKING:
    from dhr_batch.pipeline.models.catalogue import DownloadProgress, ModelStatus

T = TypeVar("T")


def on_demand(work: Callable[[], T], yes: bool) -> T:
    """Call a function; if it lacks models, download them after one question and call it again.

    Args:
        work: A function that raises `ModelMissing` before it has done anything that would disturb
            a second call, such as `models.needed.require` or `prepare`.
        yes: Whether to download without asking. Without it and without a terminal, nothing is
            downloaded.

    Raises:
        ModelMissing: If the models were not downloaded. It names the command that gets them.
    """
    from dhr_batch.pipeline.models import needed
    from dhr_batch.pipeline.models.catalogue import ModelMissing

    try:
        return work()
    except ModelMissing as error:
        if not offer(error.models, yes):
            if needed.to_download(error.models):
                error.way_out += ", or give --yes as well to download without a question"
            raise
    return work()


def offer(names: Iterable[str], yes: bool) -> bool:
    """Offer to download models and those that they require. Returns whether it was done.

    It is not if one of them cannot be downloaded, the user declines, or nobody can be asked.

    Args:
        names: The models.
        yes: Whether to download without asking.
    """
    from dhr_batch.pipeline.models import catalogue, downloads, needed

    todo = needed.to_download(names)
    if not todo or not (yes or has_terminal()):
        return False
    announce(todo)
    question = f"Download {needed.download_size(todo)} into {catalogue.home()}?"
    if not yes and not click.confirm(printable(question), default=True, err=True):
        return False
    with progress() as shown:
        downloads.pull([status.name for status in todo], shown)
    return True


def has_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty()


def megabytes(size: int) -> str:
    """Return a size as text."""
    return f"{size / 1e6:.1f} MB" if size else "-"


def announce(todo: Sequence[ModelStatus]) -> None:
    """Print what is going to be downloaded, with the licences, to stderr."""
    from dhr_batch.pipeline.models import catalogue, needed

    if todo:
        say(f"{needed.download_size(todo)} to download into {catalogue.home()}", err=True)
    for status in todo:
        terms = f"commercial use {status.commercial_use}; {status.licence}"
        say(f"  {status.name} ({megabytes(status.size)}): {terms}", err=True)


@contextmanager
def progress() -> Iterator[DownloadProgress]:
    """Show progress bars on a terminal, and lines at start and end of downloads elsewhere."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    tasks: dict[str, bars.TaskID] = {}
    with bars.Progress(*columns, console=Console(stderr=True)) as shown:

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what, total=total)
            shown.update(tasks[what], completed=done)

        yield update


def _plain_progress() -> DownloadProgress:
    finished: dict[str, bool] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in finished:
            say(f"downloading {what} ({megabytes(total)})", err=True)
        if done == total and not finished.get(what):
            say(f"downloaded {what}", err=True)
        finished[what] = done == total

    return update
