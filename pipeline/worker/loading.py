"""Loads the stages of a configuration into this process. Independent of Ray and of runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dhr_batch.pipeline.errors import CommandError
from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import devices
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.pipeline.tables import codec
from dhr_batch.pipeline.tables.rows import as_stored
from dhr_batch.pipeline.tables.schemas import RunInfo
from dhr_batch.stages import registry
from dhr_batch.stages.base import Stage
from dhr_batch.stages.context import Context, Told
from dhr_batch.stages.device import Kind, count, label, set_precision


@dataclass(frozen=True)
class Loaded:
    """The loaded stages of a configuration.

    Attributes:
        stages: The stages in order.
        device: The name of the device.
        generator: The generator that they share.
        info: The facts about the run that its tables record.
    """

    stages: list[Stage]
    device: str
    generator: Any
    info: RunInfo


def load(
    config: Config,
    device: Kind,
    aligned: bool,
    models: Callable[[str], Path] = catalogue.path,
    networks: dict[tuple[str, str], Any] | None = None,
    progress: Told = lambda family, step, steps: None,
    metadata: dict[str, Any] | None = None,
) -> Loaded:
    """Prepare this process for the stages of a configuration, and load their networks.

    Exceptions of the stages, for example for a missing model, are passed on.

    Args:
        config: The resolved settings.
        device: The device of torch.
        aligned: Whether the images are aligned already.
        models: See `Context`.
        networks: Networks that are loaded already, by family and name. Others are added.
        progress: See `Context`.
        metadata: Facts about the run that the files of tables record.

    Raises:
        CommandError: If there is no such device.
    """
    stages = list(_build(config))
    name = _prepare_torch(device, config)
    context = Context(
        device=device,
        generator=config.generator,
        models=models,
        seed=config.seed,
        aligned=aligned,
        refine=config.refine,
        precision=config.precision,
        progress=progress,
        _networks={} if networks is None else networks,
    )
    for stage in stages:
        stage.setup(context)
        if stage.family == "refine":
            context.use_refiner(stage)
    generator = context.network("generator", config.generator)
    info = run_info(config, generator, metadata or {})
    context.stored = partial(as_stored, info=info)
    return Loaded(stages, name, generator, info)


def _prepare_torch(device: Kind, config: Config) -> str:
    """Set threads and precision of this process, and return the name of the device.

    Raises:
        CommandError: If there is no such device.
    """
    if device == "cpu" and "torch" not in sys.modules:
        # No stage uses torch, and importing it takes long.
        return "CPU"
    import cv2
    import torch

    torch.set_num_threads(config.threads)
    cv2.setNumThreads(config.threads)
    set_precision(config.precision)
    if device == "cpu":
        devices.keep_freed_memory()
    elif not count(device):
        raise CommandError(
            "a GPU worker", f"torch finds no {device} device", "check the driver, or use --gpus 0"
        )
    return label(device)


def _build(config: Config) -> Iterator[Stage]:
    for family in config.stages:
        section = getattr(config, family)
        member = registry.lookup(family, section["name"])
        yield member(member.Options(**section))


def run_info(config: Config, generator: Any, metadata: dict[str, Any]) -> RunInfo:
    """Return the facts about a run that its tables record.

    Args:
        config: The settings of the run.
        generator: The generator, or an object with its `num_ws` and `magnitudes`.
        metadata: Further facts.
    """
    thresholds = config.segment.get("thresholds", {})
    return RunInfo(
        rows=generator.num_ws,
        embedder=config.embed["name"],
        thresholds={key: value for key, value in thresholds.items() if value is not None},
        deltas=codec.LEVELS.get(config.store_deltas),
        magnitudes=generator.magnitudes(),
        store_features=bool(config.measure.get("features")),
        random_weights=config.generator == "tiny",
        metadata=metadata,
    )
