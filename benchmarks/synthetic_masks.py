"""How well masks find known occluders, and whether occluders impair the rest of the face.

python -m dhr_batch.benchmarks.synthetic_masks [--images N] [--refined N] [--out DIR] [--json]

There are two runs on generated faces with occluders that hide 5 to 40 % of them: one with the
preset `masks`, and one with the default refinement, on faces with and without their occluders.
Intervals are 95 % intervals.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.report.metrics import title
from dhr_batch.pipeline.report.truth import Figure, bin_names, figures
from dhr_batch.pipeline.units import number

GENERATOR = "mobilestylegan-256"


def measured(
    out: Path,
    images: int,
    seed: int,
    pairs: bool,
    settings: dict[str, object],
    sets: tuple[str, ...],
) -> list[Figure]:
    """Generate pictures, run on them, and compare the results with the ground truth.

    The same call again finishes an interrupted run.

    Args:
        out: The folder of the pictures and the run.
        images: The number of pictures.
        seed: The seed of the pictures.
        pairs: Whether to run on the faces without their occluders as well.
        settings: Settings of the run.
        sets: Settings in the form KEY=VALUE, which override the others.
    """
    from dhr_batch.pipeline.datasets import synthetic
    from dhr_batch.pipeline.engine import runner
    from dhr_batch.pipeline.planning.prepare import prepare
    from dhr_batch.pipeline.planning.request import Request
    from dhr_batch.pipeline.runs.results import open as open_run

    described = synthetic.write_dataset(
        out / "pictures", images, seed=seed, generator=GENERATOR, pairs=pairs
    )
    chosen = {"dataset": str(described), "generator": GENERATOR, **settings}
    request = Request(settings=chosen, sets=sets, out=out / "run")
    outcome = runner.run(prepare(request), request)
    if outcome.done < outcome.images:
        raise CommandError(
            f"run {outcome.out}",
            f"{outcome.images - outcome.done} of its images are not finished",
            f"see why with: dhr-batch status {outcome.out}",
        )
    return figures(open_run(outcome.out).metrics)


def text(figure: Figure) -> str:
    """Return a line with the mean, its interval, and the means by occluded share."""
    name = f"{title(figure.metric)} ({figure.stage})"
    mean = f"{number(figure.mean)} ({number(figure.low)} to {number(figure.high)})"
    shares = "  ".join(number(value) for value in figure.by_share)
    return f"{figure.picture:28}{name:44}{mean:28}{shares}"


@click.command(cls=Command, help=__doc__)
@click.option(
    "--images",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Number of pictures for the masks.",
)
@click.option(
    "--refined",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Number of pictures for the refinement.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the pictures."
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/synthetic"),
    show_default=True, help="Folder of the pictures and runs.",
)  # fmt: skip
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting, as in `run`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def main(
    images: int, refined: int, seed: int, out: Path, sets: tuple[str, ...], as_json: bool
) -> None:
    runs = []
    if images:
        settings: dict[str, object] = {"preset": "masks"}
        runs.append(("masks", measured(out / "masks", images, seed, False, settings, sets)))
    if refined:
        settings = {"edit": {"name": "directions", "edits": []}}
        runs.append(("refined", measured(out / "refined", refined, seed, True, settings, sets)))
    if as_json:
        click.echo(json.dumps({name: [asdict(f) for f in found] for name, found in runs}, indent=1))
        return
    for name, found in runs:
        click.echo(f"{name}: {found[0].n} pictures; by occluded share: {', '.join(bin_names())}")
        for figure in found:
            click.echo(text(figure))


if __name__ == "__main__":
    main()
