"""The options of `run` and `plan`: those that decide what a run does and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from dhr_batch.pipeline.prepare import Request

Command = TypeVar("Command", bound=Callable[..., Any])

_PLAN = (
    click.option(
        "--dataset",
        metavar="NAME|PLACE",
        help="Configured dataset, folder, .tar, .parquet, or URL; with --from, a finished run.",
    ),
    click.option(
        "--from",
        "first_stage",
        metavar="STAGE",
        help="Begin at this stage, from what the run that --dataset names has of the earlier ones.",
    ),
    click.option("--preset", metavar="NAME", help="Named settings; they override the defaults."),
    click.option("--gpus", type=click.IntRange(0), help="GPUs to use; 0: CPU.  [default: all]"),
    click.option(
        "--workers-per-gpu", type=click.IntRange(1), help="Workers that share a GPU.  [default: 1]"
    ),
    click.option(
        "--out",
        metavar="DIR|URL",
        help="Run folder, or s3://, gs:// or az:// URL.  [default: runs/<dataset>-<generator>]",
    ),
    click.option(
        "-c",
        "--config",
        "files",
        multiple=True,
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="YAML settings; may be repeated, later files win.",
    ),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="One setting, e.g. embed.steps=20.",
    ),
    click.option("--limit", type=click.IntRange(1), help="Only the first images."),
    click.option(
        "--seed",
        type=click.IntRange(0),
        help="Seed of random draws; the default stages draw nothing.  [default: 0]",
    ),
    click.option("--address", help="Ray cluster to join.  [default: a local session]"),
    click.option(
        "--extend", is_flag=True, help="Add images that are new since the run was started."
    ),
)
_SETTINGS = ("dataset", "first_stage", "preset", "gpus", "workers_per_gpu", "limit", "seed")


def plan_options(command: Command) -> Command:
    """All options that `request` understands, in the order of the help."""
    for option in reversed(_PLAN):
        command = option(command)
    return command


def request(options: dict[str, Any]) -> Request:
    """What the user asks for. options: as click gives them; keys beyond the flags of settings are
    fields of `Request`."""
    from dhr_batch.pipeline.prepare import Request

    settings = {key: options[key] for key in _SETTINGS if options[key] is not None}
    others = {key: value for key, value in options.items() if key not in _SETTINGS}
    return Request(settings=settings, **others)
