"""The dataset `synthetic`: generated faces with known latent codes under known occluders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml

from dhr_batch.pipeline.datasets import ground_truth
from dhr_batch.pipeline.datasets.items import DatasetError
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.files import sha256, whole
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.locations import is_url
from dhr_batch.pipeline.storage.ownership import SYNTHETIC, Owned
from dhr_batch.stages import registry
from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.parsers.face_parts import FACE_CLASSES
from dhr_batch.stages.record import Truth

if TYPE_CHECKING:
    from dhr_batch.stages.occluders import Occluded

# Range of the occluded share of a face.
SHARES = (0.05, 0.4)
# Part of the id of a picture without its occluder.
TWIN = "-clean"
_GOLDEN = (5**0.5 - 1) / 2
_ATTEMPTS = 20


class SyntheticFace(NamedTuple):
    """A generated face with an occluder.

    Attributes:
        number: The index of the picture.
        occluded: The picture and the kind of its occluder.
        truth: The ground truth.
    """

    number: int
    occluded: Occluded
    truth: Truth


def share(index: int) -> float:
    """Return the share of the face that the occluder of a picture should cover.

    Fractional parts of multiples of the golden ratio are a low-discrepancy sequence, so the first N
    pictures cover `SHARES` evenly for any N.
    """
    low, high = SHARES
    return low + (high - low) * ((index + 1) * _GOLDEN % 1)


def image_id(index: int, occluded: bool = True) -> str:
    """Return the id of a picture.

    >>> image_id(17), image_id(17, occluded=False)
    ('00017.png', '00017-clean.png')
    """
    return f"{index:05d}{'' if occluded else TWIN}.png"


def context(generator: str) -> Context:
    """Return a context on the CPU, so that pictures differ between machines by rounding only."""
    return Context(device="cpu", generator=generator, models=catalogue.path, aligned=True)


def sample(context: Context, seed: int, index: int, truncation: float) -> SyntheticFace:
    """Generate one picture, independently of all others.

    Up to twenty codes are drawn, until the parser finds a face in the generated picture.

    Args:
        context: The device and the generator.
        seed: Seed of the dataset.
        index: Index of the picture.
        truncation: Truncation of the generator, 1 for none.

    Raises:
        DatasetError: If no face is found.
    """
    import torch

    from dhr_batch.stages.occluders import KINDS, occlude
    from dhr_batch.stages.tensors import tensor_to_images

    net = context.network("generator", context.generator)
    parser = context.network("parser", "landmarks")
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    for _ in range(_ATTEMPTS):
        z = rng.standard_normal(512, dtype=np.float32)
        with torch.inference_mode():
            w = net.map(torch.from_numpy(z[None]), truncation)
            clean = tensor_to_images(net.synthesize(net.broadcast(w)))[0]
        probs = parser.parse(clean)
        if probs is None:
            continue
        face = np.isin(probs.argmax(0), FACE_CLASSES)
        if face.any():
            occluded = occlude(rng, clean, face, share(index), KINDS[index % len(KINDS)])
            code = w[0].numpy().copy()
            truth = Truth(clean, face, occluded.mask, True, z, truncation, code)
            return SyntheticFace(index, occluded, truth)
    raise DatasetError(
        f"generator {context.generator!r}",
        f"no face was found in {_ATTEMPTS} draws at truncation {truncation:g}",
        "take a generator of faces, or a smaller truncation",
    )


def rows(samples: Iterator[SyntheticFace], pairs: bool) -> Iterator[dict[str, Any]]:
    """Iterate over rows of `ground_truth.SCHEMA`.

    Args:
        samples: The pictures.
        pairs: Whether each picture is followed by the same picture without its occluder.
    """
    for sample in samples:
        picture, truth = sample.occluded, sample.truth
        yield ground_truth.row(image_id(sample.number), picture.image, picture.kind, truth)
        if pairs:
            twin = replace(truth, occluded=False)
            name = image_id(sample.number, occluded=False)
            yield ground_truth.row(name, truth.clean, ground_truth.NONE, twin)


def write_dataset(
    folder: Path,
    images: int,
    *,
    seed: int = 0,
    generator: str = "mobilestylegan-256",
    truncation: float = 0.7,
    pairs: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write `synthetic.parquet` and its description `synthetic.yaml`.

    A file of an earlier call is replaced when the new one is complete.

    Args:
        folder: The folder to write to.
        images: Number of pictures with an occluder.
        seed: Seed of the dataset.
        generator: A generator of faces: a model's name or a file.
        truncation: Truncation of the generator, 1 for none.
        pairs: Whether each picture is written without its occluder, too.
        report: Called after each picture with the number done and the number in total.

    Returns:
        The path of the description, for `--dataset`.

    Raises:
        Refused: If the folder contains other files.
        DatasetError: If the generator shows no faces.
        ModelMissing: If a model was not downloaded.
        OSError: If the files cannot be written.
    """
    owned = Owned(connect(folder), SYNTHETIC)
    owned.check()
    target, description = folder / "synthetic.parquet", folder / "synthetic.yaml"
    owned.refused = owned.foreign([target.name, description.name])
    owned.require()
    generating = context(generator)

    def samples() -> Iterator[SyntheticFace]:
        for index in range(images):
            yield sample(generating, seed, index, truncation)
            report(index + 1, images)

    folder.mkdir(parents=True, exist_ok=True)
    about = {"generator": registry.label(generator), "seed": str(seed)}
    with whole(target) as part:
        ground_truth.write_truths(part, rows(samples(), pairs), about)
        owned.claim()
        owned.note(target.name, sha256(part))
        owned.require()
    text = f"{registry.label(generator)}, truncation {truncation:g}, seed {seed}"
    settings = {"root": target.name, "aligned": True, "column": "image", "id_column": "image_id"}
    described = {"description": f"{images} generated faces under occluders: {text}"} | settings
    described = {"name": "synthetic"} | described
    owned.write(description.name, yaml.safe_dump(described, sort_keys=False).encode())
    owned.require()
    return description


def default_folder(dataset: Dataset) -> Path:
    """Return the folder of a dataset.

    Raises:
        DatasetError: If the dataset lies in an object store.
    """
    if is_url(dataset.location):
        raise DatasetError(
            dataset.location,
            "it is not a folder",
            "choose a folder with --out, and copy its files there",
        )
    return Path(dataset.location)
