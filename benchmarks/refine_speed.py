"""How much faster the default refinement is than the published schedule, and how good both are.

python -m dhr_batch.benchmarks.refine_speed [--images N] [--dataset NAME|FOLDER] [--json FILE]

The essence of `dhr-batch bench --preset refine-speed`. The methods take turns on each photograph;
the clock covers the mask and the refinement up to its render.
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

# Columns of the benchmark that are printed; all are in the JSON.
SHOWN = (
    *("turn_seconds", "turn_cpu_seconds", "turn_generator_calls", "memory_host", "memory_gpu"),
    *("psnr", "psnr_in", "psnr_out", "st_lpips_alex", "identity_dlib_distance"),
    "smile@equal_identity_dlib_distance",
)


def matrix(dataset: str, generator: str) -> dict[str, Any]:
    """The benchmark on a dataset. With the generator `tiny`, all networks have random weights."""
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
    """Make the runs and tables of a benchmark below `out`; what they come to."""
    from dhr_batch.pipeline.bench import matrix as bench_matrix
    from dhr_batch.pipeline.bench import run as bench
    from dhr_batch.pipeline.bench import write as bench_write

    found = bench_matrix.parse_matrix(content, "refine_speed")
    planned = bench.plan(found, out, images, random_weights=True)
    done = bench.run(planned, bench.Machine(), lambda text: click.echo(text, err=True))
    if done.failed:
        raise CommandError("\n".join(f"{n}: {why}" for n, why in done.failed.items()))
    bench_write.write_benchmark(planned, done.failed)
    tables = json.loads((out / "benchmark.json").read_text())["datasets"]
    figures = {method["refiner"]: method["figures"] for method in tables[0]["methods"]}
    rows = {name: {key: f["value"] for key, f in own.items()} for name, own in figures.items()}
    ratio = figures.get("tuned", {}).get("turn_seconds_ratio")
    if ratio is None:
        raise CommandError("no photograph was refined in turn", "the reason stands above")
    ours, theirs = (rows[name].get("psnr") for name in ("dhr", "tuned"))
    warnings = {
        f"{ratio['n']} pairs are few for a median: give 5 photographs or more": ratio["n"] < 5,
        "random weights: no figure means anything": content["settings"]["generator"] == "tiny",
        "schedules were chosen on these photographs": content["datasets"] == ["portraits"],
    }
    return {
        "speedup": ratio["value"],
        "psnr_gain_db": None if ours is None or theirs is None else ours - theirs,
        "warnings": [warning for warning, holds in warnings.items() if holds],
        "rows": [{"method": name} | own for name, own in rows.items()],
    }


@click.command(cls=Command, help=__doc__)
@click.option("--images", type=click.IntRange(1), help="only the first photographs")
@click.option("--dataset", default="portraits", show_default=True, help="name or folder")
@click.option("--aligned", is_flag=True, help="the photographs are FFHQ crops already")
@click.option("--generator", default="mobilestylegan-256", show_default=True)
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
