"""The options of commands that plan or start a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dhr_batch.pipeline.cli import complete

if TYPE_CHECKING:
    from dhr_batch.pipeline.planning.request import Request

Command = TypeVar("Command", bound=Callable[..., Any])


def _face(_context: object, _parameter: object, value: str | None) -> str | int | None:
    if value is None or value in _FACES:
        return value
    if not re.fullmatch("[0-9]{1,9}", value):
        raise click.BadParameter(f"{value!r}: give {', '.join(_FACES)}, or a number from 0")
    return int(value)


_FACES = ("largest", "central", "only", "all")
_PLAN = {
    "dataset": click.option(
        "--dataset",
        metavar="NAME|PLACE",
        shell_complete=complete.datasets,
        help="Dataset: a name, folder, .tar, .parquet or URL; with --from, a finished run.",
    ),
    "first_stage": click.option(
        "--from",
        "first_stage",
        metavar="STAGE",
        shell_complete=complete.stages,
        help="First stage to run; the results of earlier stages are read from the run --dataset.",
    ),
    "preset": click.option(
        "--preset",
        metavar="NAME",
        shell_complete=complete.presets,
        help="Named settings, which override the defaults.",
    ),
    "gpus": click.option(
        "--gpus",
        type=click.IntRange(0),
        help="Number of GPUs to use; 0 for the CPU.  [default: all]",
    ),
    "device": click.option(
        "--device",
        type=click.Choice(["cuda", "mps", "xpu", "cpu"]),
        help="Device: NVIDIA (cuda), Apple (mps) or Intel GPU (xpu), or the CPU.  "
        "[default: cuda if there is one]",
    ),
    "workers_per_gpu": click.option(
        "--workers-per-gpu",
        type=click.IntRange(1),
        help="Number of workers that share a GPU.  [default: 1]",
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
        help="YAML file with settings. May be repeated; later files override earlier ones.",
    ),
    "sets": click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=complete.assignment,
        help="One setting, such as embed.steps=20; see `config explain`. May be repeated.",
    ),
    "limit": click.option(
        "--limit",
        type=click.IntRange(1),
        help="Number of images to process, from the first.  [default: all]",
    ),
    "face": click.option(
        "--face",
        callback=_face,
        metavar="largest|all|N",
        help="Which of several faces to take: the largest, all, or one by its number, where 0 is "
        "the largest.  [default: largest]",
    ),
    "seed": click.option(
        "--seed",
        type=click.IntRange(0),
        help="Seed of random draws; not used by the default stages.  [default: 0]",
    ),
    "address": click.option("--address", help="Ray cluster to join.  [default: a local session]"),
    "allow_code": click.option(
        "--allow-code",
        is_flag=True,
        help="Let the dataset or run name code of other packages (package.module:Class).",
    ),
    "extend": click.option(
        "--extend", is_flag=True, help="Add images that are new in the dataset to the run."
    ),
}
YES = click.option(
    "--yes",
    is_flag=True,
    help="Do not ask before models are downloaded, or before --fresh deletes files.",
)
_START = (
    click.option("-n", "--dry-run", is_flag=True, help="Print the plan and write nothing."),
    click.option(
        "--fresh",
        is_flag=True,
        help="Delete the files of the run in the run folder and start over.",
    ),
    YES,
    click.option("--force", is_flag=True, help="Start even if the free space seems too small."),
    click.option(
        "--report/--no-report", default=True, show_default=True, help="Write the HTML report."
    ),
    click.option(
        "--progress",
        type=click.Choice(["auto", "rich", "plain", "none"]),
        default="auto",
        show_default=True,
        help="Kind of progress display.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
    click.option(
        "-v", "--verbose", is_flag=True, help="Also print the settings and the workers' logs."
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print only errors and the result."),
)
# The key of the words of the command line in the `meta` of click's context.
WORDS = "dhr_batch.words"
_SETTINGS = (
    "dataset",
    "first_stage",
    "preset",
    "gpus",
    "device",
    "workers_per_gpu",
    "limit",
    "seed",
)


def selected_options(*names: str) -> Callable[[Command], Command]:
    """Return a decorator that adds some of the options of `plan_options` to a command."""
    return _adder([_PLAN[name] for name in names])


def edits_option(default: str = "") -> Callable[[Command], Command]:
    """Return a decorator that adds the option for the edits of pictures to a command.

    Args:
        default: What its help says at the end: the edits that are made without the option.
    """
    return click.option(
        "--edit",
        "edits",
        multiple=True,
        metavar="NAME=STRENGTH",
        shell_complete=complete.edits,
        help="Direction, or its file, and strength; several for one picture are joined by +. May "
        f"be repeated, for further pictures.{default}",
    )


def plan_options(command: Command) -> Command:
    """Add all options that determine what a run does and where, in the order of the help."""
    return _adder([*_PLAN.values()])(command)


def start_options(command: Command) -> Command:
    """Add the options of a command that starts a run with `start.start`."""
    return _adder(_START)(command)


def _adder(options: Sequence[Callable[[Any], Any]]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _words() -> Sequence[str]:
    context = click.get_current_context(silent=True)
    return context.meta.get(WORDS, ()) if context else ()


def request(options: dict[str, Any]) -> Request:
    """Return the request of a command.

    Args:
        options: The options as click passes them, and optionally `settings`, the settings that the
            command itself makes. Options that are not settings are fields of `Request`.
    """
    from dhr_batch.pipeline.planning.request import Request

    flags = {key: options[key] for key in _SETTINGS if options.get(key) is not None}
    if options.get("face") is not None:
        flags["align"] = {"face": options["face"]}
    others = {key: value for key, value in options.items() if key not in (*_SETTINGS, "face")}
    others["command"] = _words()
    return Request(**others | {"settings": flags | options.get("settings", {})})
