"""How much faster the default refinement is than the published schedule, and how good both are.

python -m dhr_batch.benchmarks.refine_speed [--images N] [--dataset NAME|FOLDER] [--json FILE]

Each photograph is aligned and embedded once, outside the clock; both methods start from that code
and are run in turn. The clock covers the mask (coarse inversion where there is one, error,
superpixels, parsing) and the refinement up to its render.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

FILLED = {"stylegan2-filled-256": "dhr_batch.benchmarks.filled:stylegan2_256"}


@click.command(help=__doc__)
@click.option("--images", type=click.IntRange(1), help="only the first photographs")
@click.option("--dataset", default="portraits", show_default=True, help="name or folder")
@click.option("--aligned", is_flag=True, help="the photographs are FFHQ crops already")
@click.option(
    "--generator",
    default="mobilestylegan-256",
    show_default=True,
    help=f"name, converted .safetensors, or {', '.join(FILLED)} (random weights, cost only)",
)
@click.option("--batch", default="1", show_default=True, help="batch sizes, e.g. 1,4")
@click.option("--published", is_flag=True, help="also the quality of the published rates")
@click.option("--memory", "only_memory", is_flag=True, help="peak memory of the default, no more")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="keep codes here")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    images: int | None,
    dataset: str,
    aligned: bool,
    generator: str,
    batch: str,
    published: bool,
    only_memory: bool,
    cache: Path | None,
    file: Path | None,
) -> None:
    from dhr_batch.benchmarks import refine_measured as measured
    from dhr_batch.benchmarks.refine_table import text
    from dhr_batch.pipeline.datasets.items import DatasetError
    from dhr_batch.pipeline.models.catalogue import ModelMissing
    from dhr_batch.pipeline.planning.config import ConfigError

    try:
        batches = sorted({int(size) for size in batch.split(",")})
    except ValueError:
        batches = [0]
    if batches[0] < 1:
        raise click.UsageError(f"--batch {batch!r} is not a list of sizes such as 1,4")
    try:
        if only_memory:
            result = measured.memory_alone(FILLED.get(generator, generator))
        elif generator in FILLED:
            result = measured.cost_alone(FILLED[generator], images or 3)
        else:
            photographs = measured.Photographs(dataset, images, aligned, cache)
            result = measured.compare(generator, photographs, batches, published)
    except (ConfigError, DatasetError, ModelMissing) as error:
        raise click.ClickException(str(error)) from error
    if generator in FILLED:
        result["generator"] = generator
    click.echo(text(result))
    if file is not None:
        file.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
