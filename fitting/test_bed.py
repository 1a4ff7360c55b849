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

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dhr_batch.fitting.averaged import AveragedAdam
from dhr_batch.fitting.distill import export
from dhr_batch.fitting.distill_pairs import HELD_OUT, codes, write_atomically
from dhr_batch.fitting.test_bed_pairs import Pairs, levels, render, student_rows
from dhr_batch.fitting.test_bed_student import Coordinates, dense, layers, style
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.models import catalogue
from dhr_batch.stages.context import Context
from dhr_batch.stages.embed.optimise import face_region
from dhr_batch.stages.networks.faces.dlib_face import Landmarks68
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.networks.generators.stylegan2_layouts import (
    FORMAT,
    MAPPING_RATE,
    named_tensors,
)
from dhr_batch.stages.tensors import tensor_to_images

CHECKPOINT = "test_bed.pt"
MADE_BY = "dhr_batch.fitting.test_bed"
WIDTHS = (256, 256, 256, 128, 64, 32)
# Sizes that are trained until each share of the time.
STAGES = ((16, 0.1), (32, 0.45), (64, 0.8), (128, 1.0))
# Weight of the images of smaller sizes, which StyleGAN2 sums up.
SKIP_WEIGHT = 0.2
# Largest share of the time that is spent on new pairs.
PAIRS_SHARE = 0.25
PUBLISH_SECONDS = 480
# Brings the features to a root mean square of .3 to 1.1; see `fill`.
FEATURE_SCALE = 0.4
CORES = 2


def student(teacher: MobileStyleGAN, widths: Sequence[int] = WIDTHS) -> StyleGAN2:
    """Return the student with the mapping network of its teacher and no other weights."""
    net = StyleGAN2(widths, mapping_layers=teacher.mapping_layers)
    with torch.no_grad():
        for name in net.weight_names("mapping."):
            net.weight(name).copy_(teacher.weight(name))
        net.w_mean.copy_(teacher.w_mean)
    return net


@torch.no_grad()
def coordinates(teacher: MobileStyleGAN) -> Coordinates:
    """Return the coordinates of W by 4,096 codes of the teacher with truncation 0.75."""
    z = torch.randn(4096, 512, generator=torch.Generator().manual_seed(0))
    return Coordinates(teacher.map(z, 0.75))


def is_head(name: str) -> bool:
    """Return whether a weight is the kernel of an image layer."""
    return name.startswith("to_rgb") and name.endswith("weight") and "modulation" not in name


def in_features(name: str) -> bool:
    """Return whether the features are proportional to these weights taken together."""
    bias = name.endswith("bias") and "modulation" not in name and "to_rgb" not in name
    return name == "input" or name.endswith("noise_strength") or bias


def start(net: StyleGAN2, space: Coordinates) -> dict[str, Tensor]:
    """Return random weights of the synthesis network, with modulations of coordinates of W.

    Kernels have unit variance and styles a mean of 1, as StyleGAN2 starts. Image layers are 0,
    so that sizes that are not yet trained add nothing.
    """
    draw = torch.Generator().manual_seed(0)
    params = {}
    for name in net.weight_names():
        shape = net.weight(name).shape
        if name.startswith("mapping."):
            continue
        if name.endswith("modulation.bias"):
            params[name] = torch.ones(shape)
        elif name.endswith("noise_strength"):
            params[name] = torch.full(shape, 0.02)
        elif name.endswith("bias") or is_head(name):
            params[name] = torch.zeros(shape)
        else:
            params[name] = torch.randn(shape, generator=draw)
    for name in net.noise_names:
        net.noise(name).copy_(torch.randn(net.noise(name).shape, generator=draw))
    for name in [name for name in params if name.endswith("modulation.weight")]:
        params[name], _ = space.from_weights(params[name], torch.zeros(()))
    return params


@torch.no_grad()
def fill(net: StyleGAN2, params: Mapping[str, Tensor], space: Coordinates) -> StyleGAN2:
    """Copy weights in training to the network, rounded to half precision as they are stored.

    Features are proportional to some weights, and images to features and heads. So that features
    are of the size of published networks, these weights are multiplied and heads are divided.
    """
    for name, value in params.items():
        if name.endswith("modulation.weight"):
            bias = name.replace("weight", "bias")
            pair = space.to_weights(value, params[bias])
            for key, part in zip((name, bias), pair, strict=True):
                net.weight(key).copy_(part.half())
        elif not name.endswith("modulation.bias"):
            factor = FEATURE_SCALE if in_features(name) else 1 / FEATURE_SCALE
            scaled = value * factor if in_features(name) or is_head(name) else value
            net.weight(name).copy_(scaled.half())
    return net


def rosinality(net: StyleGAN2) -> dict[str, object]:
    """Return the checkpoint of a network in the layout of rosinality/stylegan2-pytorch."""
    state: dict[str, Tensor] = {}
    for name in net.weight_names():
        value, (layer, _, leaf) = net.weight(name).detach().clone(), name.rpartition(".")
        if name.startswith("mapping."):
            scale = MAPPING_RATE / (math.sqrt(value.shape[1]) if leaf == "weight" else 1)
            state[f"style.{int(layer.split('.')[1]) + 1}.{leaf}"] = value / scale
        elif name == "input":
            state["input.input"] = value[None]
        elif ".modulation." in name:
            state[name.replace(".modulation.", ".conv.modulation.")] = value
        elif leaf == "weight":
            state[f"{layer}.conv.weight"] = value.reshape(1, *value.shape[:2], *_kernel(value))
        elif leaf == "noise_strength":
            state[f"{layer}.noise.weight"] = value
        elif layer.startswith("to_rgb"):
            state[name] = value.reshape(1, 3, 1, 1)
        else:
            state[f"{layer}.activate.bias"] = value
    for index, name in enumerate(net.noise_names):
        state[f"noises.noise_{index}"] = net.noise(name)[None, None].clone()
    for block in range(net.convs // 2):
        state[f"convs.{2 * block}.conv.blur.kernel"] = net.filter.clone()
        state[f"to_rgbs.{block}.upsample.kernel"] = net.filter.clone()
    return {"g_ema": state, "latent_avg": net.w_mean.clone()}


def _kernel(value: Tensor) -> tuple[int, int]:
    return (3, 3) if value.ndim == 4 else (1, 1)


def rms(tensor: Tensor) -> float:
    """Return the root mean square of a tensor."""
    return float(tensor.detach().float().square().mean().sqrt())


def _scale(name: str, tensor: Tensor) -> float:
    """Return the scale of a weight, to which its rate is relative."""
    starts_near_0 = float(tensor.abs().max()) < 0.1 and "modulation" not in name
    return 0.3 if starts_near_0 else rms(tensor)


class Trainer(AveragedAdam):
    """Adam with steps relative to each tensor, on all sizes up to one, with averaged weights.

    Demodulation makes the scale of kernels irrelevant, so they are kept at unit variance.

    Args:
        net: The student, for its sizes and noise.
        space: Coordinates of W, in which the modulations are trained.
        rate: Largest step relative to a weight.
    """

    def __init__(self, net: StyleGAN2, space: Coordinates, rate: float) -> None:
        self.net, self.space = net, space
        tensors = start(net, space)
        scales = {name: _scale(name, tensor) for name, tensor in tensors.items()}
        super().__init__(tensors, scales, rate, fused=True)

    def step(
        self, ws: Tensor, images: Tensor, progress: float, dtype: torch.dtype = torch.bfloat16
    ) -> float:
        """Update the weights once.

        The loss of an image is the root mean square error, of the whole and of the inner face, so
        that easy images count as much as hard ones.

        Args:
            ws: Codes, [B, L, 512]; only the rows of layers up to the size of the images are used.
            images: Target images in [-1, 1], [B, 3, size, size].
            progress: Share of the training that is done, 0..1, which sets the rate.
            dtype: Of the convolutions.

        Returns:
            The mean PSNR of the batch in dB.
        """
        parts = [(w, x, dtype) for w, x in zip(ws.chunk(CORES), images.chunk(CORES), strict=True)]
        # One part per core is faster than operations with several threads, above all on a machine
        # that is shared: the parts wait for each other once per step.
        with ThreadPoolExecutor(CORES) as pool:
            results = list(pool.map(lambda part: self._gradients(*part), parts))
        for tensor, *gradients in zip(self.trained(), *(g for _, g in results), strict=True):
            present = [gradient for gradient in gradients if gradient is not None]
            tensor.grad = sum(present) / len(parts) if present else None
        self.update(progress)
        return sum(score for score, _ in results) / len(parts)

    def trained(self) -> list[Tensor]:
        """Return the weights in training."""
        return list(self.tensors.values())

    def _gradients(
        self, ws: Tensor, images: Tensor, dtype: torch.dtype
    ) -> tuple[float, tuple[Tensor | None, ...]]:
        """Return the mean PSNR of a batch and the gradient of each weight, None if it has none."""
        rows = 2 * int(math.log2(images.shape[-1])) - 2
        outputs = dense(self.net, self.space.encode(ws[:, :rows]), self.tensors, dtype)
        loss, target = torch.zeros(()), images
        for output in reversed(outputs):
            target = F.avg_pool2d(target, target.shape[-1] // output.shape[-1])
            error = output - target
            parts = [error, face_region(error)] if output is outputs[-1] else [error]
            for part in parts:
                root = (part.square().mean((1, 2, 3)) + 1e-6).sqrt().mean()
                loss = loss + (1.0 if output is outputs[-1] else SKIP_WEIGHT) * root
        gradients = torch.autograd.grad(loss, self.trained(), allow_unused=True)
        error = (outputs[-1].detach() - images).square().mean((1, 2, 3))
        return float((10 * torch.log10(4 / error)).mean()), gradients

    def constrain(self) -> None:
        """Bring kernels back to unit variance, which demodulation makes free."""
        for tensor in self.tensors.values():
            if tensor.ndim == 4:
                tensor /= tensor.square().mean((1, 2, 3), keepdim=True).sqrt()


class Figures(NamedTuple):
    """Comparison of student and teacher on held-out codes.

    Attributes:
        psnr, inner: Mean PSNR of the whole picture and of the inner face (`face_region`), in dB.
        worst: Smallest PSNR of an inner face.
        faces: Share of the pictures in which dlib finds a face.
        teacher_faces: The same of the teacher's pictures at this size.
    """

    psnr: float
    inner: float
    worst: float
    faces: float
    teacher_faces: float

    def __str__(self) -> str:
        return (
            f"held out ({len(HELD_OUT)}): {self.psnr:.2f} dB, inner face {self.inner:.2f} dB "
            f"(worst {self.worst:.2f}), dlib finds a face in {self.faces:.0%} (teacher "
            f"{self.teacher_faces:.0%})"
        )


@torch.no_grad()
def held_out(teacher: MobileStyleGAN, cache: Path) -> tuple[Tensor, Tensor]:
    """Return held-out codes of the teacher [64, 23, 512] and its images, uint8, from the cache."""
    file = cache / "held_out.pt"
    if not file.exists():
        ws = torch.cat([codes(teacher, seed) for seed in HELD_OUT])
        pairs = {"ws": ws, "images": render(teacher, ws)}
        write_atomically(file, lambda path: torch.save(pairs, path))
    pairs = torch.load(file, weights_only=True)
    return pairs["ws"], pairs["images"]


def decibels(images: Tensor, targets: Tensor) -> Tensor:
    """Return the PSNR of pictures in [-1, 1], [B]; values beyond are clamped."""
    error = (images.clamp(-1, 1) - targets).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error)


def faces(finder: Landmarks68, images: Tensor) -> float:
    """Return the share of aligned pictures [B, 3, R, R] in which dlib's detector finds a face."""
    found = [finder.locate(image)[1] == "hog" for image in tensor_to_images(images)]
    return sum(found) / len(found)


@torch.no_grad()
def pictures(net: StyleGAN2, ws: Tensor) -> Tensor:
    """Return the student's pictures of codes of the teacher."""
    return torch.cat([net.synthesize(part) for part in student_rows(ws, net.num_ws).split(8)])


@torch.no_grad()
def figures(net: StyleGAN2, ws: Tensor, images: Tensor, finder: Landmarks68) -> Figures:
    """Compare the student with images of the teacher (uint8) at codes of the teacher."""
    made, target = pictures(net, ws), levels(images, net.resolution)
    inner = decibels(face_region(made), face_region(target))
    found = [faces(finder, x) for x in (made, target)]
    return Figures(
        float(decibels(made, target).mean()), float(inner.mean()), float(inner.min()), *found
    )


@torch.no_grad()
def statistics(net: StyleGAN2, ws: Tensor) -> list[str]:
    """Return lines of the rms of features and weights by layer, at codes of the student.

    Published networks have kernels of about unit variance and features of about .2 to 1.1.
    """
    params = {name: net.weight(name) for name in net.weight_names()}
    lines = ["layer        features  kernels  modulation weight  bias  style mean +- std  noise"]
    scaled = ws / math.sqrt(ws.shape[-1])
    for name, x, row in layers(net, scaled, params, torch.float32):
        scales = style(params, name, scaled[:, row])
        lines.append(
            f"{name:12} {rms(x):8.2f} {rms(params[f'{name}.weight']):8.2f} "
            f"{rms(params[f'{name}.modulation.weight']):18.2f} {rms(params[f'{name}.bias']):5.2f} "
            f"{float(scales.mean()):8.2f} +- {float(scales.std()):4.2f} "
            f"{float(params[f'{name}.noise_strength']):10.3f}"
        )
    return lines


@torch.no_grad()
def contact_sheet(net: StyleGAN2, ws: Tensor, images: Tensor, columns: int = 8) -> Image.Image:
    """Return a sheet of pictures of the teacher, each above that of the student."""
    made, target = pictures(net, ws).clamp(-1, 1), levels(images, net.resolution)
    pairs = torch.cat([target, made], 2)
    rows = [torch.cat(list(row), 2) for row in pairs.split(columns)]
    pixels = (torch.cat(rows, 1) + 1) * 127.5
    return Image.fromarray(pixels.round().byte().permute(1, 2, 0).numpy())


def size_at(progress: float, resolution: int) -> int:
    """Return the size that is trained at a share of the time.

    Example:
        >>> [size_at(p, 64) for p in (0.0, 0.2, 0.5, 0.9)]
        [16, 32, 64, 64]
    """
    return next(min(size, resolution) for size, end in STAGES if progress < end or end == 1)


def train(
    trainer: Trainer,
    pairs: Pairs,
    limit: float,
    batch: int,
    count: int,
    checkpoint: Path,
    publish: Callable[[StyleGAN2], None],
) -> None:
    """Train for `limit` seconds in total, including earlier parts of a resumed run.

    Args:
        trainer: The student in training.
        pairs: Pairs, of which up to `count` are rendered on the way.
        limit: Seconds.
        batch: Images per step.
        count: Pairs in the end.
        checkpoint: File of the state.
        publish: Called every few minutes with the network of the averaged weights, rounded to half
            precision.
    """
    rng = np.random.default_rng(trainer.steps)
    before, began, published = trainer.seconds, time.perf_counter(), trainer.seconds
    rendering, recent = 0.0, []

    def save() -> None:
        write_atomically(checkpoint, lambda path: torch.save(trainer.state(), path))
        publish(fill(trainer.net, trainer.average, trainer.space))

    while trainer.seconds < limit:
        if len(pairs) < count and rendering <= PAIRS_SHARE * (trainer.seconds - before):
            start_of_pairs = time.perf_counter()
            pairs.add()
            rendering += time.perf_counter() - start_of_pairs
        progress = trainer.seconds / limit
        size = size_at(progress, trainer.net.resolution)
        chosen = torch.from_numpy(rng.choice(len(pairs), batch))
        recent.append(trainer.step(pairs.ws[chosen], levels(pairs.images[chosen], size), progress))
        trainer.seconds = before + time.perf_counter() - began
        if trainer.steps % 100 == 0:
            click.echo(
                f"{trainer.seconds / 60:5.1f} min  step {trainer.steps}  {size} px  "
                f"{len(pairs)} pairs  train {np.mean(recent[-100:]):.2f} dB"
            )
        if trainer.seconds - published > PUBLISH_SECONDS:
            published = trainer.seconds
            save()
    save()


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
