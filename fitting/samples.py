"""Seeded faces of a generator with their latents, landmarks and perceptual features.

The fitting commands learn from them. Pictures are not stored. A cache folder holds shards of
`SHARD` samples, and an interrupted run continues with the first missing shard.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.files import whole
from dhr_batch.pipeline.models.weights import weights_of_generator

if TYPE_CHECKING:
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.networks.faces.dlib_face import Landmarks68
    from dhr_batch.stages.networks.generators.generator import Generator

SHARD = 50
POOLED = 4


@dataclass(frozen=True, slots=True)
class Samples:
    """N generated faces.

    Attributes:
        w: Latents after truncation, float32 [N, 512].
        landmarks: Landmarks in pixels of the render, float32 [N, 68, 2]; NaN if no face is found.
        feat: Last layer of `st_lpips_alex` as means of 4 x 4 cells, float16 [N, 4096].
        about: Generator, seed and truncation.
    """

    w: np.ndarray
    landmarks: np.ndarray
    feat: np.ndarray
    about: dict[str, Any]


def draw(seed: int, shard: int) -> np.ndarray:
    """Return normal vectors z of a shard, float32 [SHARD, 512], independent of other shards."""
    source = np.random.Generator(np.random.PCG64([seed, shard]))
    return source.standard_normal((SHARD, 512), dtype=np.float32)


def collect(
    context: Context,
    folder: Path,
    count: int,
    seed: int = 0,
    truncation: float = 0.8,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Samples:
    """Render and label faces of a generator, or read those that the folder already contains.

    Args:
        context: The device and the generator.
        folder: The cache folder.
        count: Number of samples, rounded up to whole shards.
        seed: Seed of the samples.
        truncation: Truncation of the generator, 1 for none.
        report: Called after each shard with the number of samples done and in total.

    Raises:
        Refused: The folder contains samples of another generator, seed or truncation.
    """
    generator = context.network("generator", context.generator)
    about = {
        "generator": context.generator,
        "generator_weights": weights_of_generator(context.generator),
        "resolution": generator.resolution,
        "seed": seed,
        "truncation": truncation,
    }
    folder.mkdir(parents=True, exist_ok=True)
    card = folder / "samples.json"
    if card.is_file():
        _check(card, about)
    else:
        replace(card, json.dumps(about, indent=1).encode())
    shards = -(-count // SHARD)
    for shard in range(shards):
        file = folder / f"{shard:05d}.npz"
        if not file.is_file():
            save(file, _label(context, generator, draw(seed, shard), truncation))
        report((shard + 1) * SHARD, shards * SHARD)
    return load(folder, shards)


def _check(card: Path, about: dict[str, Any]) -> None:
    """Raise Refused if the description of a cache folder is that of other samples."""
    found = read_card(card)
    weights = json.dumps(about["generator_weights"])
    if isinstance(former := found.get("generator_weights"), str):
        raise Refused(
            str(card),
            f'"generator_weights" is {former!r}, a fingerprint of an earlier version, which '
            "depends on the processor and cannot be compared",
            "if the weights of the generator are still the same, write "
            f"{weights} in its place; otherwise fit on these samples as they are with --reuse, or "
            "choose another folder with --cache",
        )
    if found != about:
        raise Refused(
            str(card.parent),
            f"it contains samples of {found}, but samples of {about} are needed",
            "choose another folder with --cache",
        )


def load(folder: Path, shards: int | None = None) -> Samples:
    """Return the samples in a cache folder, of the first `shards` shards.

    Raises:
        Refused: The folder has no samples, or a file of it is damaged.
    """
    files = sorted(folder.glob("[0-9]*.npz"))[:shards]
    if not files:
        raise Refused(str(folder), "it has no samples", "fit without --reuse")
    parts = [read_arrays(file, ("w", "landmarks", "feat")) for file in files]
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    return Samples(**joined, about=read_card(folder / "samples.json"))


def read_arrays(file: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Return arrays of a file of `save`. Raises Refused if it is damaged."""
    with _damage(file), np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in names}


def read_card(file: Path) -> dict[str, Any]:
    """Return the description of a cache folder. Raises Refused if it is damaged."""
    with _damage(file):
        return dict(json.loads(file.read_text("utf-8")))


@contextmanager
def _damage(file: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, LookupError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        way_out = "delete it, and the same command without --reuse computes it again"
        raise Refused(str(file), f"it is damaged: {error}", way_out) from error


def _label(
    context: Context, generator: Generator, z: np.ndarray, truncation: float
) -> dict[str, np.ndarray]:
    import torch
    import torch.nn.functional as F

    from dhr_batch.stages.tensors import tensor_to_images

    finder = context.network("landmarks", "dlib68")
    perceptual = context.network("perceptual", "st_lpips_alex")
    landmarks, features = [], []
    with torch.inference_mode():
        w = generator.map(torch.from_numpy(z).to(context.device), truncation)
        # A batch is not faster on a CPU, and on a GPU the landmarks take most of the time.
        for code in w.split(1):
            image = generator.synthesize(generator.broadcast(code))
            landmarks.append(find_landmarks(finder, tensor_to_images(image)[0]))
            cells = F.adaptive_avg_pool2d(perceptual.features(image)[-1], POOLED)
            features.append(cells.flatten().half().cpu().numpy())
    return {
        "w": w.cpu().numpy(),
        "landmarks": np.stack(landmarks),
        "feat": np.stack(features),
    }


def find_landmarks(finder: Landmarks68, image: np.ndarray) -> np.ndarray:
    """Return the 68 landmarks of an aligned image, float32 [68, 2], or NaN if no face is detected.

    A face at the usual place that the detector does not find is left out, because its landmarks
    would be guesses.
    """
    box, found_by = finder.locate(image)
    found = finder.find(image, box) if found_by == "hog" else None
    return np.full((68, 2), np.nan, np.float32) if found is None else found.astype(np.float32)


def save(file: Path, arrays: dict[str, Any]) -> None:
    with whole(file) as part, part.open("wb") as stream:
        np.savez(stream, **arrays)


def replace(file: Path, data: bytes) -> None:
    with whole(file) as part:
        part.write_bytes(data)
