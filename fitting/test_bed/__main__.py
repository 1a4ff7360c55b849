"""Distil the 256 px generator into a small StyleGAN2, a test bed that makes faces.

    python -m dhr_batch.fitting.test_bed --minutes 75 --cache DIR --out FILE.pt --sheet PNG

The student has the architecture of StyleGAN2 at 128 px and the mapping network and W space of its
teacher. It serves tests, benchmarks and learning rates on StyleGAN2, not pictures. It is trained on
images of the teacher, reduced by area, from kernels of unit variance: first its layers up to 16 px,
then those of each larger size as well. FILE.pt has the layout of rosinality/stylegan2-pytorch, and
FILE.safetensors beside it is the same converted, in half precision. Pairs and a checkpoint, from
which an interrupted run continues, are in DIR.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch

from dhr_batch.fitting.distill import export
from dhr_batch.fitting.distill_pairs import write_atomically
from dhr_batch.fitting.test_bed.figures import contact_sheet, figures, held_out, statistics
from dhr_batch.fitting.test_bed.pairs import Pairs, student_rows
from dhr_batch.fitting.test_bed.student import coordinates, student
from dhr_batch.fitting.test_bed.training import Trainer, train
from dhr_batch.fitting.test_bed.weights import rosinality
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.models import catalogue
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.generators.stylegan2_layouts import FORMAT, named_tensors

CHECKPOINT = "test_bed.pt"
MADE_BY = "dhr_batch.fitting.test_bed"


@click.command(cls=Command)
@click.option("--minutes", default=75.0, show_default=True, help="Training time on two cores.")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Pairs, checkpoint.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--pairs", default=6000, show_default=True, help="Training images (0.1 s each).")
@click.option("--rate", default=1e-2, show_default=True, help="Largest step relative to a weight.")
@click.option("--batch", default=16, show_default=True, help="Images per step.")
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG: teacher above student.")
def main(
    minutes: float, cache: Path, out: Path, pairs: int, rate: float, batch: int, sheet: Path | None
) -> None:
    """Distil the 256 px generator into a small StyleGAN2 in the layout of rosinality.

    With `--minutes 0` and a finished cache, only evaluate the cached weights again.
    """
    torch.set_num_threads(1)
    cache.mkdir(parents=True, exist_ok=True)
    context = Context(device="cpu", generator="mobilestylegan-256", models=catalogue.path)
    teacher = context.network("generator", "mobilestylegan-256")
    finder = context.network("landmarks", "dlib68")
    net = student(teacher)
    trainer = Trainer(net, coordinates(teacher), rate)
    if (cache / CHECKPOINT).exists():
        trainer.restore(torch.load(cache / CHECKPOINT, weights_only=True))
        click.echo(f"resumed at step {trainer.steps}, {trainer.seconds / 60:.1f} min")
    material = Pairs(teacher, cache, net.num_ws)
    material.load()
    ws, images = held_out(teacher, cache)

    def publish(net: StyleGAN2) -> None:
        write_atomically(out, lambda path: torch.save(rosinality(net), path))
        click.echo(f"{trainer.seconds / 60:5.1f} min  {figures(net, ws, images, finder)}")

    train(trainer, material, 60 * minutes, batch, pairs, cache / CHECKPOINT, publish)
    shipped = out.with_suffix(".safetensors")
    about = {"format": FORMAT, "resolution": str(net.resolution), "made_by": MADE_BY}
    digest = export(named_tensors(net), shipped, about)
    click.echo(f"{shipped}: {shipped.stat().st_size} bytes, sha256 {digest}")
    click.echo("\n".join(statistics(net, student_rows(ws, net.num_ws))))
    click.echo(str(figures(net, ws, images, finder)))
    if sheet is not None:
        contact_sheet(net, ws[:24], images[:24]).save(sheet)


if __name__ == "__main__":
    main()
