"""Comparison of the StyleGAN2 test bed with its teacher: figures and a contact sheet."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dhr_batch.fitting.distill_pairs import HELD_OUT, codes, write_atomically
from dhr_batch.fitting.test_bed.pairs import levels, render, student_rows
from dhr_batch.fitting.test_bed.student import layers, style
from dhr_batch.fitting.test_bed.weights import rms
from dhr_batch.stages.embed.optimise import face_region
from dhr_batch.stages.networks.faces.dlib_face import Landmarks68
from dhr_batch.stages.networks.generators.mobilestylegan import MobileStyleGAN
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.tensors import tensor_to_images


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
