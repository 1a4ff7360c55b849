"""The commands below `edits`: list the shipped directions, create new ones, edit a whole run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.pipeline.cli import complete
from dhr_batch.pipeline.cli import options as cli_options
from dhr_batch.pipeline.cli.edits.fit import fit, known_generator
from dhr_batch.pipeline.cli.edits.sweep import sweep
from dhr_batch.pipeline.cli.edits.text_features import text_features
from dhr_batch.pipeline.cli.output import say
from dhr_batch.pipeline.files import require_absent
from dhr_batch.stages import registry
from dhr_batch.stages.edit import syntax
from dhr_batch.stages.edit.direction_files import describe_set, shipped, shipped_edits

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.device import Kind

GENERATOR = click.option(
    "--generator",
    default="mobilestylegan-256",
    show_default=True,
    callback=known_generator,
    shell_complete=complete.generators,
    metavar="NAME|FILE",
    help=f"Generator of the directions: {', '.join(registry.names('generator'))}, or a file.",
)


def _new(_context: object, _parameter: object, out: Path) -> Path:
    require_absent(*(out.parent / f"{out.stem}{suffix}" for suffix in (".npz", ".yaml")))
    return out


OUT = click.option(
    "--out",
    required=True,
    callback=_new,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The .npz file to write, together with a .yaml file that describes it.",
)
ROWS = click.option(
    "--rows",
    metavar="A-B",
    default=None,
    help="First and last row of the W+ code to change, such as 0-6.  [default: all]",
)


def _context(generator: str, device: Kind | None) -> Context:
    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.device import use

    return Context(device=use(kind=device), generator=generator, models=catalogue.path)


def _rows(text: str | None, live: list[int]) -> list[int]:
    if text is None:
        return live
    first, _, last = text.partition("-")
    if not re.fullmatch("[0-9]{1,9}(-([0-9]{1,9})?)?", text):
        raise click.BadParameter(f"{text!r} is not a range such as 0-6", param_hint="--rows")
    rows = [r for r in live if int(first) <= r <= int(last or first)]
    if not rows:
        raise click.BadParameter(
            f"{text} contains no row that has an effect: choose from {live}", param_hint="--rows"
        )
    return rows


def _command() -> str:
    return shlex.join(["dhr-batch", *sys.argv[1:]])


@click.group()
def edits() -> None:
    """List, fit and apply edit directions."""


edits.add_command(sweep)
edits.add_command(fit)
edits.add_command(text_features)


@edits.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def list_directions(as_json: bool) -> None:
    """List the shipped directions and other edits."""
    files, others = shipped(), shipped_edits()
    rows = {name: describe_set(file)["directions"][name] for name, file in files.items()}
    settings = {name: describe_set(file)["edits"][name] for name, file in others.items()}
    if as_json:
        click.echo(json.dumps(rows | settings, indent=1))
        return
    for name, about in rows.items():
        say(f"{name:17s} strength 1 = {about['unit']}  ({files[name].name})")
    for name, edit in settings.items():
        text = ", ".join(f"{key} {_as_text(value)}" for key, value in edit.items())
        say(f"{name:17s} {text}  ({others[name].name})")


def _as_text(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    if isinstance(value[0], dict):
        return syntax.joined(f"{part['direction']}={part['strengths'][0]:g}" for part in value)
    return f"[{', '.join(map(str, value))}]"


def _write(out: Path, arrays: dict, units: dict[str, str], about: dict) -> None:
    from dhr_batch.fitting.direction_sets import write_set
    from dhr_batch.pipeline.models.weights import weights_of_generator
    from dhr_batch.stages.edit.direction_files import digest

    directions = {
        n: {"sha256": digest(arrays[n]), "unit": unit, "shape": list(arrays[n].shape)}
        for n, unit in units.items()
    }
    weights = weights_of_generator(about["generator"])
    about = about | {"generator_weights": weights, "command": _command()}
    file = write_set(out.parent, out.stem, arrays, directions, about)
    say(f"{file.with_suffix('.npz')}: choose one as {out.stem}.npz#{next(iter(arrays))}")


@edits.command("sefa")
@GENERATOR
@ROWS
@click.option(
    "--count",
    default=8,
    show_default=True,
    type=click.IntRange(1, 512),
    help="Number of directions.",
)
@cli_options.selected_options("device")
@OUT
def sefa_directions(
    generator: str, rows: str | None, count: int, device: Kind | None, out: Path
) -> None:
    """Compute directions from the generator's weights (SeFa)."""
    from dhr_batch.stages.edit.formulas import sefa

    net = _context(generator, device).network("generator", generator)
    chosen = _rows(rows, net.live_rows)
    directions, values = sefa(net, chosen, count)
    arrays = {f"sefa{i:02d}": d for i, d in enumerate(directions)}
    units = {n: f"a unit vector (eigenvalue {v:.4g})" for n, v in zip(arrays, values, strict=True)}
    _write(out, arrays, units, {"about": "SeFa directions", "generator": generator, "rows": chosen})


@edits.command("ganspace")
@GENERATOR
@ROWS
@click.option(
    "--samples",
    default=100_000,
    show_default=True,
    type=click.IntRange(min=1000),
    help="Number of random latents.",
)
@click.option(
    "--count",
    default=20,
    show_default=True,
    type=click.IntRange(1, 512),
    help="Number of directions.",
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of random draws."
)
@cli_options.selected_options("device")
@OUT
def ganspace_directions(
    generator: str,
    rows: str | None,
    samples: int,
    count: int,
    seed: int,
    device: Kind | None,
    out: Path,
) -> None:
    """Compute principal components of latents (GANSpace).

    A strength of 1 is one standard deviation. The file has the components themselves as well, for
    edits whose strength is a target: `{ganspace: FILE.npz, component: 3, rows: [0, 18]}`.
    """
    import numpy as np

    from dhr_batch.stages.edit.formulas import ganspace_fit

    net = _context(generator, device).network("generator", generator)
    chosen = _rows(rows, net.live_rows)
    pca = ganspace_fit(net, samples, count, seed)
    arrays = {}
    for i, (component, std) in enumerate(zip(pca.components, pca.std, strict=True)):
        moved = component * std
        if rows is not None:
            moved = np.zeros((net.num_ws, moved.size), np.float32)
            moved[chosen] = component * std
        arrays[f"pc{i:02d}"] = moved
    units = {n: "one standard deviation along the component" for n in arrays}
    arrays |= {"mean": pca.mean[None], "comp": pca.components[:, None], "std": pca.std}
    about = {
        "about": "GANSpace directions",
        "generator": generator,
        "samples": samples,
        "seed": seed,
    }
    _write(out, arrays, units, about | {"rows": chosen})
