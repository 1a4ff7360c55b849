"""Estimate how many bytes a run will write, before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.pipeline.units import size

# Bytes per pixel of a PNG picture, a 1-bit mask and labels, measured on photographs at 256 px.
_PICTURE, _MASK, _LABELS = 1.8, 0.02, 0.03
_LATENT_ROW = 512 * 4 * 0.9
_METRIC = 12
# Bytes of the longest features, those of Inception.
_FEATURE = 2048 * 4 * 0.9
# Bytes per weight of the generator, and per value of its feature layer.
_DELTA = {"small": 0.13, "fine": 0.27}
# The size of deltas relative to those of the refiner `dhr`. The first two change all weights, in a
# long schedule; the last two are the two parts of `dhr`.
_REFINERS = {"pti": 2.4, "dhr-published": 2.4, "weights": 0.5, "feature": 0.6}
# Bytes of the exact arrays that other refiners store of an image. Those of `sam` grow with what is
# assigned to features, to at most 14 MB; the figure is of one portrait.
_STATES = {"hyperstyle": 27_000, "hfgi": 370_000, "sam": 1_100_000}
# Bytes of the file of a table without rows: schema and metadata.
_EMPTY_FILE = 6000


@dataclass(frozen=True)
class GeneratorFacts:
    """The facts about a generator that the size of tables depends on.

    Attributes:
        resolution: The width and height of its pictures in pixels.
        rows: The number of rows of a W+ code.
        weights: The number of weights that are refined.
        feature: The number of values of the feature that is refined.
    """

    resolution: int
    rows: int
    weights: int
    feature: int

    @classmethod
    def of(cls, generator: Any) -> GeneratorFacts:
        """Return the facts about a loaded generator."""
        names = [name for name in generator.weight_names() if not name.startswith("mapping.")]
        return cls(
            resolution=generator.resolution,
            rows=generator.num_ws,
            weights=sum(generator.weight(name).numel() for name in names),
            feature=math.prod(generator.feature_shape),
        )


def edited_pictures(config: Config) -> int:
    """Return the number of edited pictures of one image."""
    return sum(len(edit.get("strengths", ())) for edit in config.edit.get("edits", ()))


def bytes_per_image(config: Config, generator: GeneratorFacts) -> dict[str, float]:
    """Return the expected bytes of one image in each table."""
    pixels, edits = generator.resolution**2, edited_pictures(config)
    code = generator.rows * _LATENT_ROW
    tables = {
        "images": (3 + edits) * pixels * _PICTURE,
        "latents": code,
        "masks": pixels * (_MASK + _LABELS),
        "edits": edits * code,
        "metrics": (2 + edits) * 20 * _METRIC,
    }
    if config.store_deltas != "none" and config.refine["name"] != "none":
        values = generator.weights + generator.feature
        more, name = _DELTA[config.store_deltas], config.refine["name"]
        tables["deltas"] = _STATES.get(name) or more * _REFINERS.get(name, 1) * values
    if extractors := config.measure.get("features"):
        tables["features"] = (3 + edits) * len(extractors) * _FEATURE
    return tables


def total_bytes(tables: dict[str, float], images: int, shards: int) -> float:
    """Return the expected bytes of a run.

    Args:
        tables: The expected bytes of one image in each table.
        images: The number of images to compute.
        shards: The number of shards to compute.
    """
    return sum(tables.values()) * images + _EMPTY_FILE * (len(tables) + 1) * shards


def check_space(
    free: int | None, tables: dict[str, float], images: int, shards: int, force: bool
) -> str:
    """Check that the disk has enough space for a run.

    Args:
        free: The free bytes; None if they are unknown, as in object stores.
        tables: The expected bytes of one image in each table.
        images: The number of images to compute.
        shards: The number of shards to compute.
        force: Whether to accept too little space.

    Returns:
        The estimate as a line for the user.

    Raises:
        Refused: If the space is too small.
    """
    total = total_bytes(tables, images, shards)
    parts = ", ".join(f"{name} {size(count * images)}" for name, count in tables.items())
    available = "unknown on an object store" if free is None else size(free)
    line = f"expected output: {size(total)} ({parts}); free space: {available}"
    if free is not None and total > free and not force:
        raise Refused(
            line,
            "the free space is too small",
            "free some space, choose another folder with --out, write fewer tables (--set "
            "store_deltas=none), or go on with --force",
        )
    return line
