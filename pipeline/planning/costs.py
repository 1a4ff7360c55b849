"""Estimate what a run costs before it starts, from measured costs and a short test of the machine.

`configs/costs.yaml` has the CPU seconds of stages on one core, and how long the test took there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from dhr_batch.pipeline.forecast import Forecast
from dhr_batch.pipeline.planning import devices, estimate
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.pipeline.planning.estimate import GeneratorFacts
from dhr_batch.pipeline.units import duration, size
from dhr_batch.stages import yaml_files

# The generator whose costs stand for those of others, as far as their ratios matter.
_STANDARD = "mobilestylegan-256"
# The stages that the host works on beside the device.
ON_HOST = ("segment", "measure")


@dataclass(frozen=True)
class Costs:
    """The expected costs of an image.

    Attributes:
        seconds: The seconds of a worker for each stage, in order.
        known: Whether they hold for this machine. If not, only their ratios are expected.
        why: Why they do not.
    """

    seconds: Mapping[str, float]
    known: bool
    why: str = ""


def expected(config: Config) -> Costs:
    """Return the expected costs of an image. A short test measures this machine.

    Args:
        config: The resolved settings of a run.
    """
    table, why = _table(), ""
    generators = table["generators"]
    if config.gpus:
        why = "costs were measured on CPUs only"
    elif config.generator not in generators:
        why = f"no costs were measured with the generator {config.generator}"
    standard = generators[_STANDARD]["stages"]
    own = generators.get(config.generator, {}).get("stages", standard)
    seconds = {}
    for family in config.stages:
        section = getattr(config, family)
        name = section["name"]
        found = own.get(family, {}).get(name)
        if found is None or section.get("perceptual") not in _MEASURED:
            why = why or f"no costs were measured of {family}.name={name} with these networks"
            found = found or next(iter(standard[family].values()))
        fixed, each = found
        seconds[family] = (fixed + each * _count(config, family)) / config.threads
    slower = calibrate() / table["test_seconds"]
    return Costs({family: own * slower for family, own in seconds.items()}, not why, why)


# The perceptual networks with which stages were measured. `measure` has a list of them.
_MEASURED = (None, "st_lpips_alex", ["st_lpips_alex"], ("st_lpips_alex",))


def _count(config: Config, family: str) -> int:
    """Return the number of what a stage does repeatedly for an image."""
    if family in ("edit", "measure"):
        return estimate.edited_pictures(config)
    section: dict[str, Any] = getattr(config, family)
    if family == "segment":
        return section["coarse_steps"] if section.get("source") in ("coarse", "projection") else 0
    return int(section.get("steps", 0))


def forecast(config: Config, costs: Costs) -> Forecast:
    """Return the forecast of a run that has not begun."""
    stages = list(config.stages)
    ahead = [stages.pop(0)] if stages[0] == "align" else []
    lanes = [ahead, stages]
    # As in `Worker`: stages of the host have threads of their own beside a GPU.
    if config.gpus and config.device != "mps":
        device = [stage for stage in stages if stage not in ON_HOST]
        lanes = [ahead, device, *([stage] for stage in stages if stage in ON_HOST)]
    return Forecast(costs.seconds, lanes, config.shard_size or 1, costs.known)


@dataclass(frozen=True)
class Expectation:
    """What a run is expected to take.

    Attributes:
        seconds: The seconds without the start of the workers; None if they are unknown.
        bytes: The bytes of the tables; None if they are unknown.
        why: Why the seconds are unknown.
    """

    seconds: float | None
    bytes: float | None
    why: str = ""

    def lines(self) -> list[str]:
        """Return the expectation as lines for the user."""
        time = f"unknown before the first image: {self.why}"
        if self.seconds is not None:
            time = (
                f"about {duration(self.seconds)}: an estimate from costs that were measured "
                "elsewhere and a short test of this machine; the first image corrects it"
            )
        disk = "unknown before the generator is loaded"
        if self.bytes is not None:
            disk = f"about {size(self.bytes)}, an estimate"
        return [f"time       {time}", f"disk       {disk}"]


def expectation(config: Config, images: int, shards: int) -> Expectation:
    """Return what a run is expected to take.

    Args:
        config: The resolved settings.
        images: The number of images to compute.
        shards: The number of their shards.
    """
    costs, seconds, count = expected(config), None, None
    if costs.known:
        found = forecast(config, costs)
        found.hands = dict.fromkeys(range(devices.worker_count(config, shards)), 0)
        seconds = found.left(images, 0.0)
    facts = _table()["generators"].get(config.generator, {}).get("facts")
    if facts:
        tables = estimate.bytes_per_image(config, GeneratorFacts(**facts))
        count = estimate.total_bytes(tables, images, shards)
    return Expectation(seconds, count, costs.why)


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml_files.read(resources.files("dhr_batch.configs") / "costs.yaml")
    return found


@cache
def calibrate() -> float:
    """Return the CPU seconds of a fixed amount of arithmetic and memory traffic on one core.

    Stages spend most of their time on these two. The time is the shortest of three, about a
    hundredth of a second each. As CPU time is measured, a program that takes cores from a run makes
    the run slower but not this test; and the test runs alone, whereas the workers of a run share
    caches and memory.
    """
    # Matrices as small as these are multiplied by one thread.
    left, right = (np.ones((2000, 48, 48), np.float32) for _ in range(2))
    large = np.ones(2**22, np.float32)
    spent = []
    for _ in range(3):
        began = time.thread_time()
        np.matmul(left, right)
        for _ in range(4):
            large *= 1.0
        spent.append(time.thread_time() - began)
    return min(spent)
