"""Distil the published 1024 px generator to the shipped 256 px generator, on one CPU core.

    python -m dhr_batch.fitting.distill --minutes 50 --cache DIR --out FILE --sheet PNG

The student is the published network up to its 128 px features, with a modulated 1x1 head to 12
wavelet channels (see `generators.cut`). Blocks 0-3 are kept as published. Block 4, its noise and
the head are trained on pairs of a W+ code and the image of the teacher, reduced 4x4 by area. Codes,
images, block-3 features and a checkpoint, from which an interrupted run continues, are cached in
DIR.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dhr_batch.fitting.averaged import AveragedAdam
from dhr_batch.fitting.distill_pairs import (
    HELD_OUT,
    coherent,
    contact_sheet,
    features,
    haar,
    held_out_scores,
    pair,
    summary,
    uniform_in_head,
    write_atomically,
)
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.models import catalogue
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.generators.named import cut, distilled_tensors, load_distilled

CHECKPOINT = "distill.pt"
ABOUT = {"made_by": "dhr_batch.fitting.distill"}
CROP = 32
# Weights of errors that remain in means over 16 px (`coherent`). They show as a tint in the low
# band and as a 2 px grid in the high bands. Their mean square is small, but they are easily
# visible.
TINT_WEIGHT, GRID_WEIGHT = 2.0, 30.0
# conv1 and conv2 each reach one pixel into the zero padding, at the resolution before the head.
MARGIN = 2


@torch.no_grad()
def fit_head(student: MobileStyleGAN, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Set weight and bias of the head by ridge regression of the wavelet bands of the teacher."""
    width = student.channels[-1]
    gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    cross = torch.zeros(width + 1, 12, dtype=torch.float64)
    for ws, image in pairs:
        x = student.to_feature(ws)
        x = student._run_blocks(x, ws, student.feature_block + 1, student.blocks, None)
        style = student._style("to_img", ws[:, student.head_slot], None) / math.sqrt(width)
        x = (x * style[:, :, None, None])[0].flatten(1)
        x = torch.cat([x, torch.ones(1, x.shape[1])])
        gram += (x @ x.T).double()
        cross += (x @ haar(image)[0].flatten(1).T).double()
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(width + 1, dtype=torch.float64)
    solution = torch.linalg.solve(gram + ridge, cross).float()
    student.weight("to_img.weight").copy_(solution[:-1].T)
    student.weight("to_img.bias").copy_(solution[-1])


def export(tensors: dict[str, Tensor], out: Path, metadata: dict[str, str]) -> str:
    """Write tensors as float16 and return the sha256 of the file.

    A model description beside it with the same name (`.yaml`) gets the new sha256 and size.
    """
    half = {name: t.detach().half().contiguous() for name, t in tensors.items()}
    write_atomically(out, lambda path: save_file(half, path, metadata))
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    description = out.with_suffix(".yaml")
    if description.exists():
        text = description.read_text(encoding="utf-8")
        text = re.sub(r"(\bsha256: \"?)[0-9a-f]{64}", rf"\g<1>{digest}", text)
        text = re.sub(r"(\bsize: )\d+", rf"\g<1>{out.stat().st_size}", text)
        write_atomically(description, lambda path: path.write_text(text, encoding="utf-8"))
    return digest


def _scale(name: str, tensor: Tensor) -> float:
    """Return the scale of a distilled tensor, to which its rate is relative."""
    if name.startswith("noise."):
        return 0.1
    rms = float(tensor.detach().square().mean().sqrt())
    # All 512 inputs of a modulation change together, so an equal relative step would change styles
    # most.
    return 0.3 * rms if name.endswith("modulation.weight") else rms


class Trainer(AveragedAdam):
    """Adam on random crops of cached features, with warm-up, cosine decay and averaged weights.

    Neighbouring pixels of an image add little information, so four crops of different images, each
    a quarter in size, train faster than one image.
    """

    def __init__(self, student: MobileStyleGAN, rate: float) -> None:
        self.student = student
        tensors = distilled_tensors(student)
        super().__init__(tensors, {name: _scale(name, t) for name, t in tensors.items()}, rate)

    def _crop(self, x: Tensor, ws: Tensor, top: int, left: int) -> Tensor:
        """Render a crop of the features with the noise maps cropped to the same place."""
        net, size = self.student, 2 * x.shape[2]
        last = f"layers.{net.blocks - 1}"
        buffers = {
            f"noise_{last.replace('.', '_')}_{c}": f"noise.{last}.{c}" for c in ("conv1", "conv2")
        }
        for buffer, name in buffers.items():
            noise = self.tensors[name][2 * top :, 2 * left :][:size, :size]
            setattr(net, buffer, noise)
        try:
            return net.from_feature(x, ws)
        finally:
            for buffer, name in buffers.items():
                setattr(net, buffer, self.tensors[name])

    def step(
        self,
        batch: Sequence[tuple[np.ndarray, Tensor, Tensor]],
        corner: tuple[int, int],
        progress: float,
    ) -> float:
        """Update the weights once.

        The loss is the mean over images of the root mean square error, so that easy images count as
        much as hard ones, as in the held-out mean of decibels. `coherent` errors count more.

        Args:
            batch: Features [C, h, w], W+ code and target image of each image.
            corner: Top and left of the crop, in pixels of the features.
            progress: Share of the training that is done, 0..1, which sets the rate.

        Returns:
            The mean PSNR of the batch in dB.
        """
        top, left = corner
        net = self.student
        full = net.resolution // 4
        x = np.stack([f[:, top : top + CROP, left : left + CROP] for f, _, _ in batch])
        ws = torch.cat([w for _, w, _ in batch])
        rows, columns = slice(4 * top, 4 * (top + CROP)), slice(4 * left, 4 * (left + CROP))
        target = torch.cat([image[:, :, rows, columns] for _, _, image in batch])
        error = self._crop(torch.from_numpy(x).float(), ws, top, left) - target
        edge = 2 * MARGIN
        error = error[
            :,
            :,
            edge if top > 0 else 0 : -edge if top + CROP < full else None,
            edge if left > 0 else 0 : -edge if left + CROP < full else None,
        ]
        mse = error.square().mean((1, 2, 3))
        self.optimizer.zero_grad(set_to_none=True)
        tint, grid = coherent(error)
        (mse + TINT_WEIGHT * tint + GRID_WEIGHT * grid + 1e-6).sqrt().mean().backward()
        self.update(progress)
        return float((10 * torch.log10(4 / mse.detach())).mean())


def train(
    student: MobileStyleGAN,
    teacher: MobileStyleGAN,
    seeds: Sequence[int],
    cache: Path,
    out: Path,
    minutes: float,
    rate: float,
    batch: int,
) -> dict[str, Tensor]:
    """Train for `minutes` in total, including earlier parts of a resumed run.

    The averaged weights are written to `out` every few minutes.

    Returns:
        The averaged weights by name.
    """
    trainer, checkpoint = Trainer(student, rate), cache / CHECKPOINT
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True))
    else:
        write_atomically(checkpoint, lambda path: torch.save(trainer.state(), path))
    if trainer.steps:
        click.echo(f"resumed at step {trainer.steps}, {trainer.seconds / 60:.1f} min")
    material = []
    for seed in seeds:
        ws, image = pair(teacher, cache, seed)
        if uniform_in_head(ws):
            material.append((seed, ws, image.half()))
    click.echo(f"{len(material)} training images")
    judge = cut(teacher)
    rng = np.random.default_rng(trainer.steps)
    limit, started, recent = minutes * 60, time.perf_counter(), []
    before = published = trainer.seconds
    span = student.resolution // 4 - CROP
    while trainer.seconds < limit:
        chosen = [material[i] for i in rng.choice(len(material), batch, replace=False)]
        # Drawn beyond the frame and clipped, so that borders with their zero padding occur too.
        top, left = (int(v) for v in rng.integers(-6, span + 7, 2).clip(0, span))
        picked = [
            (features(student, cache, seed, w), w, image.float()) for seed, w, image in chosen
        ]
        recent.append(trainer.step(picked, (top, left), trainer.seconds / limit))
        trainer.seconds = before + time.perf_counter() - started
        if trainer.steps % 100 == 0:
            click.echo(
                f"{trainer.seconds / 60:5.1f} min  step {trainer.steps}  "
                f"train {np.mean(recent[-100:]):.2f} dB"
            )
        if trainer.seconds - published > 240 or trainer.seconds >= limit:
            published = trainer.seconds
            write_atomically(checkpoint, lambda path: torch.save(trainer.state(), path))
            export(trainer.average, out, ABOUT)
            _fill(judge, trainer.average)
            click.echo(summary(held_out_scores(judge, teacher, cache, HELD_OUT[:12])))
    return trainer.average


@torch.no_grad()
def _fill(net: MobileStyleGAN, tensors: dict[str, Tensor]) -> None:
    for name, tensor in distilled_tensors(net).items():
        tensor.copy_(tensors[name].half())


@click.command(cls=Command)
@click.option("--minutes", default=50.0, show_default=True, help="Training time on one core.")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Pairs, checkpoint.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--pairs", default=800, show_default=True, help="Training images (0.9 s each).")
@click.option("--rate", default=1e-2, show_default=True, help="Largest step relative to a weight.")
@click.option("--batch", default=4, show_default=True, help="Crops per step.")
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Distilled file to start from, instead of a head fitted by least squares.",
)
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG: student, teacher, difference.")
def main(
    minutes: float,
    cache: Path,
    out: Path,
    pairs: int,
    rate: float,
    batch: int,
    start: Path | None,
    sheet: Path | None,
) -> None:
    """Distil the 1024 px generator to 256 px and write the tensors that differ.

    With `--minutes 0` and a finished cache, only evaluate the cached weights again.
    """
    torch.set_num_threads(1)
    cache.mkdir(parents=True, exist_ok=True)
    context = Context(device="cpu", generator="mobilestylegan-1024", models=catalogue.path)
    teacher = context.network("generator", "mobilestylegan-1024")
    perceptual = context.network("perceptual", "st_lpips_alex")
    student = cut(teacher)
    if start is not None:
        load_distilled(student, start)
    elif not (cache / CHECKPOINT).exists():
        fit_head(student, [pair(teacher, cache, seed) for seed in range(min(pairs, 100))])
        export(distilled_tensors(student), out, ABOUT)
        click.echo("head by least squares:")
        click.echo(summary(held_out_scores(student, teacher, cache, HELD_OUT[:12])))
    tensors = train(student, teacher, range(pairs), cache, out, minutes, rate, batch)
    digest = export(tensors, out, ABOUT)
    _fill(student, tensors)
    click.echo(summary(held_out_scores(student, teacher, cache, HELD_OUT, perceptual)))
    click.echo(f"{out}: {out.stat().st_size} bytes, sha256 {digest}")
    if sheet is not None:
        contact_sheet(student, teacher, cache, HELD_OUT[:6]).save(sheet)


if __name__ == "__main__":
    main()
