"""How many bytes a run will write, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.pipeline.units import size

# Measured on photographs at 256 px: bytes per pixel of a PNG picture, a 1-bit mask and labels.
_PICTURE, _MASK, _LABELS = 1.8, 0.02, 0.03
_LATENT_ROW = 512 * 4 * 0.9
_METRIC = 12
# The longest features, of Inception.
_FEATURE = 2048 * 4 * 0.9
# Bytes per weight of the generator and value of its feature layer.
_DELTA = {"small": 0.13, "fine": 0.27}
# Times as much as `dhr`: refiners that move all weights, by their full schedules, and its halves.
_REFINERS = {"pti": 2.4, "dhr-published": 2.4, "weights": 0.5, "feature": 0.6}
# A file of a table without rows: schema and metadata.
_EMPTY_FILE = 6000


@dataclass(frozen=True)
class GeneratorFacts:
    """A generator, as far as its tables depend on it.

    resolution: of its pictures. rows: of a W+ code. weights, feature: values that are refined.
    """

    resolution: int
    rows: int
    weights: int
    feature: int


def edited_pictures(config: Config) -> int:
    """Edits times strengths of one image."""
    return sum(len(edit.get("strengths", ())) for edit in config.edit.get("edits", ()))


def bytes_per_image(config: Config, generator: GeneratorFacts) -> dict[str, float]:
    """Expected bytes of one image by table."""
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
        more = _REFINERS.get(config.refine["name"], 1)
        tables["deltas"] = _DELTA[config.store_deltas] * more * values
    if extractors := config.measure.get("features"):
        tables["features"] = (3 + edits) * len(extractors) * _FEATURE
    return tables


def check_space(
    free: int | None, tables: dict[str, float], images: int, shards: int, force: bool
) -> str:
    """The estimate in a line. Raises Refused where the disk cannot hold it, unless forced.

    free: bytes, or None where nobody knows (object stores). tables: bytes per image; images,
    shards: still to do.
    """
    total = sum(tables.values()) * images + _EMPTY_FILE * (len(tables) + 1) * shards
    parts = ", ".join(f"{name} {size(count * images)}" for name, count in tables.items())
    there = "unknown on an object store" if free is None else size(free)
    line = f"expected output: {size(total)} ({parts}); free space: {there}"
    if free is not None and total > free and not force:
        raise Refused(
            line,
            "that cannot suffice",
            "free some space, choose another folder with --out, write fewer tables (--set "
            "store_deltas=none), or go on with --force",
        )
    return line
