"""The dataset `synthetic`: faces of a generator, whose codes are known, under known occluders."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml

from dhr_batch.pipeline.datasets import ground_truth
from dhr_batch.pipeline.datasets.items import DatasetError
from dhr_batch.pipeline.datasets.named import Dataset
from dhr_batch.pipeline.models import catalogue as models
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.locations import is_url
from dhr_batch.pipeline.storage.ownership import SYNTHETIC, Owned
from dhr_batch.stages import registry
from dhr_batch.stages.base import Context, Truth
from dhr_batch.stages.networks.face_parts import FACE_CLASSES

if TYPE_CHECKING:
    from dhr_batch.stages.occluders import Occluded

SHARES = (0.05, 0.4)
TWIN = "-clean"
_GOLDEN = (5**0.5 - 1) / 2
_ATTEMPTS = 20


class Sample(NamedTuple):
    """A generated face and its occluder. truth: with `occluded` true."""

    number: int
    occluded: Occluded
    truth: Truth


def share(index: int) -> float:
    """The occluded share of the face that picture `index` is made for.

    Multiples of the golden ratio: any first N pictures cover `SHARES` evenly.
    """
    low, high = SHARES
    return low + (high - low) * ((index + 1) * _GOLDEN % 1)


def image_id(index: int, occluded: bool = True) -> str:
    """`00017.png`, and `00017-clean.png` for the twin without an occluder."""
    return f"{index:05d}{'' if occluded else TWIN}.png"


def context(generator: str) -> Context:
    """On the CPU, so that the pictures are the same everywhere but for rounding."""
    return Context(device="cpu", generator=generator, models=models.path, aligned=True)


def sample(made_with: Context, seed: int, index: int, truncation: float) -> Sample:
    """Picture `index`, whatever others are made. A draw in which the parser sees no face is drawn
    again. Raises DatasetError where none of twenty draws shows a face.
    """
    import torch

    from dhr_batch.stages.occluders import KINDS, occlude
    from dhr_batch.stages.tensors import tensor_to_images

    net = made_with.network("generator", made_with.generator)
    parser = made_with.network("parser", "landmarks")
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
            return Sample(index, occluded, truth)
    raise DatasetError(
        f"no face was found in {_ATTEMPTS} draws of {made_with.generator!r} at truncation "
        f"{truncation:g}: take a generator of faces, or a smaller truncation"
    )


def rows(samples: Iterator[Sample], pairs: bool) -> Iterator[dict[str, Any]]:
    """Rows of `ground_truth.SCHEMA`; with `pairs`, that of the clean twin behind each."""
    for made in samples:
        picture, truth = made.occluded, made.truth
        yield ground_truth.row(image_id(made.number), picture.image, picture.kind, truth)
        if pairs:
            twin = replace(truth, occluded=False)
            name = image_id(made.number, occluded=False)
            yield ground_truth.row(name, truth.clean, ground_truth.NONE, twin)


def write(
    folder: Path,
    images: int,
    *,
    seed: int = 0,
    generator: str = "mobilestylegan-256",
    truncation: float = 0.7,
    pairs: bool = False,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Make `synthetic.parquet` and a description of it; returns the description, for `--dataset`.

    images: pictures with an occluder. report: called after each with those done and all. A file of
    an earlier call is replaced once the new one is whole. Raises Refused for a folder that holds
    other files, DatasetError, ModelMissing, OSError.
    """
    owned = Owned(connect(folder), SYNTHETIC)
    owned.check()
    target, description = folder / "synthetic.parquet", folder / "synthetic.yaml"
    owned.refused = owned.foreign([target.name, description.name])
    owned.require()
    made_with = context(generator)

    def samples() -> Iterator[Sample]:
        for index in range(images):
            yield sample(made_with, seed, index, truncation)
            report(index + 1, images)

    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    about = {"generator": registry.label(generator), "seed": str(seed)}
    try:
        ground_truth.write(part, rows(samples(), pairs), about)
        with part.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        owned.claim()
        if owned.note(target.name, checksum):
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    text = f"{registry.label(generator)}, truncation {truncation:g}, seed {seed}"
    settings = {"root": target.name, "aligned": True, "column": "image", "id_column": "image_id"}
    described = {"description": f"{images} generated faces under occluders: {text}"} | settings
    described = {"name": "synthetic"} | described
    owned.write(description.name, yaml.safe_dump(described, sort_keys=False).encode())
    owned.require()
    return description


def default_folder(dataset: Dataset) -> Path:
    """Where the named dataset is looked for. Raises DatasetError for an object store."""
    if is_url(dataset.location):
        raise DatasetError(
            f"{dataset.location} is no folder: give one with --out, and copy it there"
        )
    return Path(dataset.location)
