"""How much faster the default refinement is than the published schedule, and how good both are.

python -m dhr_batch.benchmarks.refine_speed [--images N] [--dataset NAME|FOLDER] [--json FILE]

It is the benchmark `refine-speed`, of which `dhr-batch bench` writes all figures. The methods take
turns on each photograph. The clock covers the mask and the refinement up to its render.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from dhr_batch.benchmarks.machine import json_option, write_json

if TYPE_CHECKING:
    from dhr_batch.pipeline.bench.board import Board
    from dhr_batch.pipeline.bench.data import Method
    from dhr_batch.pipeline.bench.matrix import Matrix

TUNED_ON, ENOUGH = "portraits", 5
# Key of a row -> column of the benchmark.
COLUMNS = {
    "seconds": "turn_seconds",
    "cpu_seconds": "turn_cpu_seconds",
    "generator_calls": "turn_generator_calls",
    "peak_gib": "memory_host",
    "peak_gpu_gib": "memory_gpu",
    "psnr": "psnr",
    "psnr_in": "psnr_in",
    "psnr_out": "psnr_out",
    "st_lpips_alex": "st_lpips_alex",
    "identity_dlib_distance": "identity_dlib_distance",
    "smile_at_equal_identity": "smile@equal_identity_dlib_distance",
}


def benchmark(dataset: str, generator: str) -> Matrix:
    """The preset on a dataset. With the generator `tiny`, all networks have random weights."""
    from dhr_batch.pipeline.bench import matrix
    from dhr_batch.pipeline.planning import config

    content = matrix.preset("refine-speed").model_dump()
    content["datasets"] = [dataset]
    content["settings"]["generator"] = generator
    if generator == "tiny":
        tiny = config.preset("tiny")
        content["settings"] = tiny | content["settings"]
        content["embedders"]["w+"]["settings"]["embed"] = tiny["embed"]
        refine = {"perceptual": "tiny"}
        for refiner in content["refiners"].values():
            own = config.merge([refiner["settings"]])
            refiner["settings"] = {
                "segment": own["segment"] | refine | {"parser": "none"},
                "refine": own["refine"] | refine,
            }
    return matrix.matrix(content, "refine_speed")


def measure(matrix: Matrix, images: int | None, out: Path) -> Board:
    """Make the runs that are missing below `out`, and the tables. Raises what `bench` raises."""
    from dhr_batch.pipeline.bench import board
    from dhr_batch.pipeline.bench import data as bench_data
    from dhr_batch.pipeline.bench import run as bench
    from dhr_batch.pipeline.bench import write as bench_write

    planned = bench.plan(matrix, out, images, random_weights=True)
    done = bench.run(planned, bench.Machine(), lambda text: click.echo(text, err=True))
    if done.failed:
        raise click.ClickException("\n".join(f"{n}: {why}" for n, why in done.failed.items()))
    bench_write.write(planned, done.failed)
    (found,) = bench_data.load(planned, done.failed)
    return board.board(found, matrix.compare_to)


def summary(board: Board) -> dict[str, Any]:
    """speedup, cpu_speedup: medians over images of how many times as long `tuned` takes."""
    rows = {m.refiner: row(m, board) for m in board.compared.methods if m.refiner != "none"}
    ours, theirs = rows["dhr"], rows["tuned"]
    cells = board.cells["w+ / tuned"]
    ratio, warnings = cells["turn_seconds_ratio"], []
    if ratio.n < ENOUGH:
        warnings.append(f"{ratio.n} pairs are few for a median: give {ENOUGH} photographs or more")
    if board.compared.random_weights:
        warnings.append("random weights: no figure means anything")
    if board.compared.dataset == TUNED_ON:
        warnings.append(f"schedules were chosen on {TUNED_ON}: these are not held out")
    known = ours["psnr"] is not None and theirs["psnr"] is not None
    return {
        "speedup": ratio.value,
        "cpu_speedup": cells["turn_cpu_seconds_ratio"].value,
        "psnr_gain_db": ours["psnr"] - theirs["psnr"] if known else None,
        "pairs": ratio.n,
        "warnings": warnings,
        "rows": list(rows.values()),
    }


def row(method: Method, board: Board) -> dict[str, Any]:
    """Steps of the coarse inversion, with weights and of the feature alone; then the figures."""
    from dhr_batch.pipeline.bench.text import finite

    config, cells = method.runs[0].data.plan["config"], board.cells[method.name]
    segment, refine = config["segment"], config["refine"]
    coarse = segment["coarse_steps"] if segment["source"] == "coarse" else 0
    weights = round(refine["steps"] * refine["weight_share"])
    steps = f"{coarse}+{weights}+{refine['steps'] - weights}"
    figures = {key: finite(cells[c].value) if c in cells else None for key, c in COLUMNS.items()}
    return {"method": method.refiner, "steps": steps, **figures}


def text(result: dict[str, Any]) -> str:
    """A column per method, then what they come to."""
    import pandas as pd

    table = pd.DataFrame(result["rows"]).dropna(axis=1, how="all").set_index("method").T
    lines = [table.to_string(float_format=lambda value: f"{value:.4f}"), ""]
    lines.append(f"tuned takes {result['speedup']:.2f} times as long as dhr, the median")
    lines[-1] += f" of {result['pairs']} pairs; in CPU time {result['cpu_speedup']:.2f}"
    if result["psnr_gain_db"] is not None:
        lines.append(f"PSNR gain {result['psnr_gain_db']:+.2f} dB")
    return "\n".join([*lines, *(f"warning: {w}" for w in result["warnings"])])


@click.command(help=__doc__)
@click.option("--images", type=click.IntRange(1), help="only the first photographs")
@click.option("--dataset", default=TUNED_ON, show_default=True, help="name or folder")
@click.option("--aligned", is_flag=True, help="the photographs are FFHQ crops already")
@click.option("--generator", default="mobilestylegan-256", show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="keep the runs here")
@json_option
def main(
    images: int | None,
    dataset: str,
    aligned: bool,
    generator: str,
    out: Path | None,
    file: Path | None,
) -> None:
    from dhr_batch.pipeline.cli.output import refusals
    from dhr_batch.pipeline.datasets import named as datasets

    with tempfile.TemporaryDirectory() as folder, refusals():
        if aligned:
            found = datasets.find(dataset).model_copy(update={"aligned": True})
            described = Path(folder, "dataset.yaml")
            described.write_text(yaml.safe_dump(found.model_dump(exclude_defaults=True)))
            dataset = str(described)
        board = measure(benchmark(dataset, generator), images, out or Path(folder, "out"))
    result = summary(board)
    click.echo(text(result))
    write_json(result, file)


if __name__ == "__main__":
    main()
