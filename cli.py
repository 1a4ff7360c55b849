"""The `dhr-batch` command. Parses and prints; the work is in `dhr_batch.pipeline`."""

from __future__ import annotations

import importlib
import json
from typing import Any

import click

from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli import start
from dhr_batch.pipeline.cli.output import Group
from dhr_batch.version import __version__

# Other commands live beside what they do and are imported only when one of them is called.
_ELSEWHERE = {
    "bench": ("dhr_batch.pipeline.cli.bench", "Compare methods on datasets: runs and a table."),
    "plan": ("dhr_batch.pipeline.cli.runs", "Print what `run` would do."),
    "status": ("dhr_batch.pipeline.cli.runs", "Show how far a run is."),
    "export": ("dhr_batch.pipeline.cli.export", "Make a labelled dataset of a run's pictures."),
    "render": ("dhr_batch.pipeline.cli.runs", "Render images of a run again, or edit them."),
    "verify": ("dhr_batch.pipeline.cli.runs", "Check the files and rows of a run."),
    "quarantine": ("dhr_batch.pipeline.cli.runs", "List failed images, try them again."),
    "models": ("dhr_batch.pipeline.cli.models", "List, download and check models."),
    "datasets": ("dhr_batch.pipeline.cli.datasets", "List and check datasets."),
    "doctor": ("dhr_batch.pipeline.cli.models", "Check what this machine offers."),
    "edits": (
        "dhr_batch.pipeline.cli.edits",
        "List and fit edit directions, sweep edits over a run.",
    ),
}


class _Commands(Group):
    """A group that knows the names and help of commands it has not imported."""

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
      dhr-batch run --dataset portraits
      dhr-batch run --dataset ~/photos --preset tiny --gpus 0
      dhr-batch run --dataset celebahq --gpus 8 --dry-run
      dhr-batch models pull --all
    """


@main.command()
@cli_options.plan_options
@cli_options.start_options
def run(**options: Any) -> None:
    """Run all stages on a dataset. The same command again finishes an interrupted run.

    \b
    Exit codes: 0 done, 1 error, 2 usage or refused, 3 too many images quarantined,
    130 interrupted (state is safe).
    """
    start.start(**options)


@main.command()
@click.argument("run_dir", metavar="RUN")
@click.option("--out", metavar="DIR|URL", help="[default: RUN/report]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def report(run_dir: str, out: str | None, as_json: bool) -> None:
    """Make the report of a run again: HTML page, contact sheet, Markdown and CSV."""
    from dhr_batch.pipeline.report.write import write_report

    page = write_report(run_dir, out)
    click.echo(json.dumps({"report": page}) if as_json else page)


if __name__ == "__main__":
    main()
