"""The `dhr-batch` command: the command line only. The work is done in `dhr_batch.pipeline`."""

from __future__ import annotations

import importlib
import json
from typing import Any

import click

from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli import start
from dhr_batch.pipeline.cli.output import Group, say
from dhr_batch.version import __version__

# The module and the help of each command that is imported only when it is called.
_ELSEWHERE = {
    "config": ("dhr_batch.pipeline.cli.config", "Show and explain settings."),
    "bench": ("dhr_batch.pipeline.cli.bench", "Compare methods on datasets."),
    "edit": ("dhr_batch.pipeline.cli.edit", "Edit faces in photographs."),
    "plan": ("dhr_batch.pipeline.cli.runs", "Print what `run` would do."),
    "status": ("dhr_batch.pipeline.cli.runs", "Show the progress of a run."),
    "export": ("dhr_batch.pipeline.cli.export", "Export pictures of a run as a labelled dataset."),
    "render": ("dhr_batch.pipeline.cli.runs", "Render images of a run again, or edit them."),
    "verify": ("dhr_batch.pipeline.cli.runs", "Check the files and rows of a run."),
    "quarantine": ("dhr_batch.pipeline.cli.runs", "List failed images and retry them."),
    "models": ("dhr_batch.pipeline.cli.models", "List, download and check models."),
    "datasets": ("dhr_batch.pipeline.cli.datasets", "List, check and generate datasets."),
    "doctor": ("dhr_batch.pipeline.cli.models", "Check whether this machine is ready for runs."),
    "edits": (
        "dhr_batch.pipeline.cli.edits.group",
        "List, fit and apply edit directions.",
    ),
}


class _Commands(Group):
    """A group of commands that are imported only when they are called."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[cli_options.WORDS] = ("dhr-batch", *args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            module = importlib.import_module(_ELSEWHERE[cmd_name][0])
            return getattr(module, cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            own = super().get_command(ctx, name)
            text = own.get_short_help_str(80) if own is not None else _ELSEWHERE[name][1]
            rows.append((name, text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="dhr-batch", prog_name="dhr-batch")
def main() -> None:
    """Invert, refine and edit whole datasets of face photographs.

    \b
    Examples:
      dhr-batch edit photo.jpg --edit smile=2
      dhr-batch run --dataset portraits
      dhr-batch run --dataset ~/photos --preset tiny --gpus 0
      dhr-batch run --dataset celebahq --gpus 8 --dry-run
      dhr-batch models pull --all
    """


@main.command()
@cli_options.plan_options
@cli_options.start_options
def run(**options: Any) -> None:
    """Run all stages on a dataset, or finish an interrupted run.

    Exit codes: 0 done, 1 error, 2 usage error or refused, 3 too many images quarantined,
    130 interrupted (finished work is kept).
    """
    start.start(**options)


@main.command()
@click.argument("run_dir", metavar="RUN")
@click.option(
    "--out", metavar="DIR|URL", help="Folder or URL of the report.  [default: RUN/report]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def report(run_dir: str, out: str | None, as_json: bool) -> None:
    """Write the report of a run as HTML, Markdown and CSV, with a contact sheet."""
    from dhr_batch.pipeline.report.write import write_report

    page = write_report(run_dir, out)
    if as_json:
        click.echo(json.dumps({"report": page}))
    else:
        say(page)


if __name__ == "__main__":
    main()
