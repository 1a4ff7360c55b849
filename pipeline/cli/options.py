"""The options of commands that plan or start a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from dhr_batch.pipeline.planning.request import Request

Command = TypeVar("Command", bound=Callable[..., Any])

_PLAN = {
    "dataset": click.option(
        "--dataset",
        metavar="NAME|PLACE",
        help="Configured dataset, folder, .tar, .parquet, or URL; with --from, a finished run.",
    ),
    "first_stage": click.option(
        "--from",
        "first_stage",
        metavar="STAGE",
        help="Begin at this stage, from what the run that --dataset names has of the earlier ones.",
    ),
    "preset": click.option(
        "--preset", metavar="NAME", help="Named settings; they override the defaults."
    ),
    "gpus": click.option(
        "--gpus", type=click.IntRange(0), help="GPUs to use; 0: CPU.  [default: all]"
    ),
    "workers_per_gpu": click.option(
        "--workers-per-gpu", type=click.IntRange(1), help="Workers that share a GPU.  [default: 1]"
    ),
    "out": click.option(
        "--out",
        metavar="DIR|URL",
        help="Run folder, or s3://, gs:// or az:// URL.  [default: runs/<dataset>-<generator>]",
    ),
    "files": click.option(
        "-c",
        "--config",
        "files",
        multiple=True,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="YAML settings; may be repeated, later files win.",
    ),
    "sets": click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="One setting, e.g. embed.steps=20.",
    ),
    "limit": click.option("--limit", type=click.IntRange(1), help="Only the first images."),
    "seed": click.option(
        "--seed",
        type=click.IntRange(0),
        help="Seed of random draws; the default stages draw nothing.  [default: 0]",
    ),
    "address": click.option("--address", help="Ray cluster to join.  [default: a local session]"),
    "extend": click.option(
        "--extend", is_flag=True, help="Add images that are new since the run was started."
    ),
}
_START = (
    click.option("-n", "--dry-run", is_flag=True, help="Print the plan and stop; touches nothing."),
    click.option("--fresh", is_flag=True, help="Delete what the run folder holds and start over."),
    click.option("--yes", is_flag=True, help="Do not ask before --fresh deletes."),
    click.option("--force", is_flag=True, help="Start even if the disk looks too small."),
    click.option(
        "--report/--no-report", default=True, show_default=True, help="Make the HTML report."
    ),
    click.option(
        "--progress",
        type=click.Choice(["auto", "rich", "plain", "none"]),
        default="auto",
        show_default=True,
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
    click.option("-v", "--verbose", is_flag=True, help="Also print settings and workers' logs."),
    click.option("-q", "--quiet", is_flag=True, help="Print only errors and the result."),
)
# The words of the command line, among what click keeps of a call.
WORDS = "dhr_batch.words"
_SETTINGS = ("dataset", "first_stage", "preset", "gpus", "workers_per_gpu", "limit", "seed")


def some_options(*names: str) -> Callable[[Command], Command]:
    """These options of `plan_options`."""
    return _added([_PLAN[name] for name in names])


def plan_options(command: Command) -> Command:
    """All options that say what a run does and where, in the order of the help."""
    return _added([*_PLAN.values()])(command)


def start_options(command: Command) -> Command:
    """The options of a command that starts a run (`cli_start.start`)."""
    return _added(_START)(command)


def _added(options: Sequence[Callable[[Any], Any]]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _words() -> Sequence[str]:
    context = click.get_current_context(silent=True)
    return context.meta.get(WORDS, ()) if context else ()


def request(options: dict[str, Any]) -> Request:
    """What the user asks for. options: as click gives them; `settings`, where a command has some of
    its own; keys beyond the flags of settings are fields of `Request`."""
    from dhr_batch.pipeline.planning.request import Request

    flags = {key: options[key] for key in _SETTINGS if options.get(key) is not None}
    others = {key: value for key, value in options.items() if key not in _SETTINGS}
    others["command"] = _words()
    return Request(**others | {"settings": flags | options.get("settings", {})})
