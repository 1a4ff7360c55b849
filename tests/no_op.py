"""Stages that compute nothing, so that a run shows the cost of the engine itself.

A run uses them by name, `embed.name=dhr_batch.tests.no_op:Embed` and so on (`NAMES`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.stages.base import Stage, StageOptions
from dhr_batch.stages.context import Context
from dhr_batch.stages.record import Record


class NoOpOptions(StageOptions):
    """seconds: time to sleep per image."""

    seconds: float = 0.0


class NoOp(Stage):
    """Returns the records unchanged."""

    Options = NoOpOptions

    def process(self, records: Sequence[Record]) -> list[Record]:
        if self.options.seconds:
            time.sleep(self.options.seconds * len(records))
        return list(records)


class Align(NoOp):
    family, needs = "align", frozenset({"data"})
    gives = frozenset({"image", "quad", "source_size"})


class Embed(NoOp):
    family, needs, gives = "embed", frozenset({"image"}), frozenset({"latent", "inverted"})


class Segment(NoOp):
    family, needs, gives = "segment", frozenset({"image"}), frozenset({"labels", "mask"})


class Refine(NoOp):
    family, needs = "refine", frozenset({"latent"})
    gives = frozenset({"delta", "feature", "state", "refined"})

    def setup_render(self, context: Context) -> None:
        pass

    def render_models(self) -> set[str]:
        return set()


class Edit(NoOp):
    family, needs, gives = "edit", frozenset({"latent"}), frozenset({"edits"})


class Measure(NoOp):
    family, needs, gives = "measure", frozenset({"image"}), frozenset({"metrics"})


class NoGenerator:
    """The attributes of a generator that a worker reads, without importing torch."""

    num_ws, resolution, feature_shape, trunk_rows = 8, 32, (1, 8, 8), (0, 1)

    def weight_names(self) -> list[str]:
        return []

    def magnitudes(self) -> dict[str, float]:
        return {}


def generator(context: Context) -> NoGenerator:
    return NoGenerator()


HERE = "dhr_batch.tests.no_op"
NAMES = {"generator": f"{HERE}:generator"} | {
    cls.family: f"{HERE}:{cls.__name__}" for cls in (Align, Embed, Segment, Refine, Edit, Measure)
}


def write_images(folder: Path, count: int) -> list[Item]:
    """Write files whose content no stage reads."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:06}.png" for i in range(count)]
    for name in names:
        (folder / name).write_bytes(b"no picture")
    return [Item(name, f"{folder}/", name, 10) for name in names]
