"""The speed and quality of the default refinement, compared with the published schedule.

python -m dhr_batch.benchmarks.refine_speed [--images N] [--dataset NAME|FOLDER] [--json FILE]

This is a summary of `dhr-batch bench --preset refine-speed`. The methods process each photograph in
turn. The times are those of the mask and of the refinement including its render.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import yaml

from dhr_batch.benchmarks.machine import json_option, write_json
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import CommandError

# The columns of the benchmark that are printed. The JSON has all columns.
SHOWN = (
    *("turn_seconds", "turn_cpu_seconds", "turn_generator_calls", "memory_host", "memory_gpu"),
    *("psnr", "psnr_in", "psnr_out", "st_lpips_alex", "identity_dlib_distance"),
    "smile@equal_identity_dlib_distance",
)


def matrix(dataset: str, generator: str) -> dict[str, Any]:
    """Return the benchmark for a dataset and a generator.

    With the generator `tiny`, all networks have random weights.
    """
    from dhr_batch.pipeline.bench import matrix as bench_matrix
    from dhr_batch.pipeline.planning import config

    content = bench_matrix.shipped_matrix("refine-speed").model_dump()
    content |= {"datasets": [dataset], "settings": content["settings"] | {"generator": generator}}
    if generator == "tiny":
        tiny = config.preset("tiny")
        content["settings"] = tiny | content["settings"]
        content["embedders"]["w+"]["settings"]["embed"] = tiny["embed"]
        for refiner in content["refiners"].values():
            own = refiner["settings"] = config.merge([refiner["settings"]])
            own["segment"] |= {"parser": "none", "perceptual": "tiny"}
            own["refine"] |= {"perceptual": "tiny"}
    return content


def measure(content: dict[str, Any], images: int | None, out: Path) -> dict[str, Any]:
    """Compute a benchmark and return a summary of its results.

    Args:
        content: The description of the benchmark, as in a YAML file.
        images: The number of photographs, if not all.
        out: The folder of the runs and tables.
    """
    from dhr_batch.pipeline.bench import matrix as bench_matrix
    from dhr_batch.pipeline.bench import run as bench
    from dhr_batch.pipeline.bench import write as bench_write

    found = bench_matrix.parse_matrix(content, "refine_speed")
    planned = bench.plan(found, out, images, random_weights=True)
    outcome = bench.run(planned, bench.Machine(), lambda text: click.echo(text, err=True))
    if outcome.failed:
        raise CommandError("\n".join(f"{n}: {why}" for n, why in outcome.failed.items()))
    bench_write.write_benchmark(planned, outcome.failed)
    tables = json.loads((out / "benchmark.json").read_text())["datasets"]
    figures = {method["refiner"]: method["figures"] for method in tables[0]["methods"]}
    rows = {name: {key: f["value"] for key, f in own.items()} for name, own in figures.items()}
    ratio = figures.get("tuned", {}).get("turn_seconds_ratio")
    if ratio is None:
        raise CommandError("no photograph was refined in turn", "the reason is printed above")
    ours, theirs = (rows[name].get("psnr") for name in ("dhr", "tuned"))
    warnings = {
        f"{ratio['n']} pairs are few for a median: use at least 5 photographs": ratio["n"] < 5,
        "random weights: the results are meaningless": content["settings"]["generator"] == "tiny",
        "the schedules were chosen on these photographs": content["datasets"] == ["portraits"],
    }
    return {
        "speedup": ratio["value"],
        "psnr_gain_db": None if ours is None or theirs is None else ours - theirs,
        "warnings": [warning for warning, holds in warnings.items() if holds],
        "rows": [{"method": name} | own for name, own in rows.items()],
    }


@click.command(cls=Command, help=__doc__)
@click.option(
    "--images", type=click.IntRange(1), help="Number of images, from the first.  [default: all]"
)
@click.option("--dataset", default="portraits", show_default=True, help="Dataset of photographs.")
@click.option("--aligned", is_flag=True, help="Use the photographs as FFHQ crops without aligning.")
@click.option("--generator", default="mobilestylegan-256", show_default=True, help="Generator.")
@json_option
def main(
    images: int | None, dataset: str, aligned: bool, generator: str, file: Path | None
) -> None:
    from dhr_batch.pipeline.datasets import named

    with tempfile.TemporaryDirectory() as folder:
        if aligned:
            found = named.find(dataset).model_copy(update={"aligned": True})
            dataset = f"{folder}/dataset.yaml"
            Path(dataset).write_text(yaml.safe_dump(found.model_dump(exclude_defaults=True)))
        result = measure(matrix(dataset, generator), images, Path(folder, "out"))
    for row in result["rows"]:
        figures = (f"{key} {row[key]:.4g}" for key in SHOWN if row.get(key) is not None)
        click.echo(f"{row['method']:12}{', '.join(figures)}")
    click.echo(
        f"dhr is {result['speedup']:.2f} times as fast as tuned, the median over photographs"
    )
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}")
    write_json(result, file)


if __name__ == "__main__":
    main()
