"""The refinements that `refine_speed` compares, from a code to the refined picture and mask."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import torch

from dhr_batch.benchmarks import machine
from dhr_batch.benchmarks.published_waste import RecomputedTargets, WastefulRefinement
from dhr_batch.pipeline.models import catalogue as models
from dhr_batch.pipeline.planning import config as settings
from dhr_batch.pipeline.planning import devices
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.stages import registry
from dhr_batch.stages.base import Context, Record, Stage, some
from dhr_batch.stages.networks.generator import STYLE_WIDTH, Generator
from dhr_batch.stages.refine import Refiner
from dhr_batch.stages.refine_published import PublishedRefinement
from dhr_batch.stages.segment import DomainSpecific
from dhr_batch.stages.tensors import tensor_to_images

# Tuned on the portraits; the published rates belong to StyleGAN2 at 1024 px.
TUNED = {
    "weight_rate": 2e-4,
    "feature_rate": 5e-2,
    "pixel_weight": 10.0,
    "perceptual_weight": 1.0,
}
# Of the baseline's mask: of a coarse inversion, by all layers, with 90 % of clean pixels of the
# portraits in-domain. Superpixels, parser and perceptual network are the default's.
COARSE = {
    "source": "coarse",
    "error_layers": None,
    "thresholds": {"face": 0.2606, "parts": 0.2626, "other": 0.3035},
}


class Steps(NamedTuple):
    """Optimisation steps: of the coarse inversion, with weights, of the feature alone."""

    coarse: int
    weights: int
    feature: int


PUBLISHED = Steps(40, 50, 50)


@dataclass(frozen=True)
class Method:
    """Mask and refinement of a batch of records that have an image and a code.

    renders: the mask is made from the code's own render, which is part of the work.
    """

    name: str
    steps: Steps
    segment: DomainSpecific
    refine: Refiner
    renders: bool

    def __call__(self, records: Sequence[Record]) -> list[Record]:
        if self.renders:
            generator = self.refine.generator
            codes = torch.stack([torch.from_numpy(some(r.latent)) for r in records])
            with torch.no_grad():
                renders = tensor_to_images(generator.synthesize(codes.to(generator.w_mean.device)))
            records = [replace(r, inverted=i) for r, i in zip(records, renders, strict=True)]
        return self.refine.run(self.segment.run(records))


def configured(generator: str, images: int = 1) -> Config:
    """The default settings for a generator. Raises ConfigError for an unknown one."""
    layers: list[dict[str, Any]] = [settings.preset("tiny")] if generator == "tiny" else []
    layers += [{"generator": generator, "dataset": "-"}]
    return settings.resolve(settings.build(layers), 0, images)


def context_of(config: Config, aligned: bool = False) -> Context:
    """Networks on the device there is, with the threads that a worker has."""
    torch.set_num_threads(config.threads)
    if machine.device() == "cpu":
        devices.keep_freed_memory()
    return Context(machine.device(), config.generator, models.path, config.seed, aligned)


def stage_of(family: str, section: dict[str, Any], context: Context) -> Stage:
    """A stage as a worker sets it up."""
    member = registry.lookup(family, section["name"])
    stage: Stage = member(member.Options(**section))
    stage.setup(context)
    return stage


def default(config: Config, context: Context, steps: Steps | None = None) -> Method:
    """The stages of the settings. steps: other than theirs."""
    total = config.refine["steps"]
    weights = round(total * config.refine["weight_share"])
    steps = steps or Steps(0, weights, total - weights)
    segment = stage_of("segment", config.segment, context)
    refine = stage_of("refine", config.refine | _split(steps), context)
    assert isinstance(segment, DomainSpecific)
    assert isinstance(refine, Refiner)
    renders = config.segment["source"] == "embedding"
    return Method("default", steps, segment, refine, renders=renders)


def baseline(config: Config, context: Context, steps: Steps | None = None) -> Method:
    """The published schedule with its waste, at rates tuned for it. steps: other than published."""
    steps = steps or PUBLISHED
    options = config.segment | COARSE | {"coarse_steps": steps.coarse}
    segment = DomainSpecific(DomainSpecific.Options(**options))
    segment.setup(context)
    segment.perceptual = RecomputedTargets(segment.perceptual)
    options = {"perceptual": config.refine["perceptual"]} | TUNED | _split(steps)
    refine = WastefulRefinement(WastefulRefinement.Options.model_validate(options))
    refine.setup(context)
    return Method("baseline", steps, segment, refine, renders=False)


METHODS = {"default": default, "baseline": baseline}


def published_rates(config: Config, context: Context) -> PublishedRefinement:
    """The published loop at the published rates and without waste: for its quality alone."""
    options = {"name": "dhr-published", "perceptual": config.refine["perceptual"]}
    stage = PublishedRefinement(PublishedRefinement.Options.model_validate(options))
    stage.setup(context)
    return stage


def _split(steps: Steps) -> dict[str, Any]:
    total = steps.weights + steps.feature
    return {"steps": total, "weight_share": steps.weights / total}


# ---------------------------------------------------------------------- the clock


class Clocks(NamedTuple):
    """Seconds. cpu: of all threads of this process."""

    wall: float
    cpu: float


def now() -> Clocks:
    return Clocks(time.perf_counter(), time.process_time())


@dataclass(frozen=True)
class Trial:
    """One run of a method. time: how long it took. calls: when the generator was called."""

    records: list[Record]
    time: Clocks
    calls: list[Clocks]


@contextmanager
def watched(generator: Generator) -> Iterator[list[Clocks]]:
    """Times at which the second half of the generator is called: one per render of a batch."""
    calls: list[Clocks] = []
    original = generator.from_feature

    def noted(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(now())
        return original(*arguments, **options)

    generator.from_feature = noted  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del generator.from_feature


def trial(tried: Method, records: Sequence[Record]) -> Trial:
    """Clock a method on one batch."""
    with watched(tried.refine.generator) as calls:
        machine.synchronise()
        began = now()
        done = tried(records)
        machine.synchronise()
        ended = now()
    return Trial(done, Clocks(ended.wall - began.wall, ended.cpu - began.cpu), calls)


def extrapolated(result: Trial, done: Steps, wanted: Steps) -> Clocks:
    """The time that a method takes with the steps of `wanted`, from a trial with few.

    A step lasts from a call of the generator to the next; each phase is continued with the median
    of its own steps. Everything else (superpixels, parser, last render) counts as measured.
    """
    wall, cpu = zip(*result.calls, strict=True)
    return Clocks(
        _longer(result.time.wall, wall, done, wanted), _longer(result.time.cpu, cpu, done, wanted)
    )


def _longer(seconds: float, calls: Sequence[float], done: Steps, wanted: Steps) -> float:
    # Calls in order: the coarse steps, if any, and the render that the mask is made from, then the
    # refinement, whose last call is the render of the result.
    first = len(calls) - 1 - done.weights - done.feature
    starts = {"coarse": 0, "weights": first, "feature": first + done.weights}
    for phase, start in starts.items():
        count, more = getattr(done, phase), getattr(wanted, phase) - getattr(done, phase)
        if count and more:
            lasted = [calls[i + 1] - calls[i] for i in range(start, start + count)]
            seconds += more * median(lasted)
    return seconds


# ---------------------------------------------------------------------- memory


def synthetic(context: Context, images: int = 1) -> list[Record]:
    """Records without a photograph: renders of random codes, to be refined from the mean code."""
    net: Generator = context.network("generator", context.generator)
    z = torch.randn(images, STYLE_WIDTH, generator=torch.Generator().manual_seed(1))
    mean = net.broadcast(net.w_mean[None])[0].cpu().numpy().copy()
    with torch.no_grad():
        pictures = tensor_to_images(net.synthesize(net.broadcast(net.map(z.to(net.w_mean)))))
        inverted = tensor_to_images(net.synthesize(net.broadcast(net.w_mean[None])))[0]
    return [
        Record(f"{i}", f"{i}", image=picture, latent=mean, inverted=inverted)
        for i, picture in enumerate(pictures)
    ]


def memory(name: str, generator: str) -> dict[str, float]:
    """Peak memory in MB of a process that only refines one image, with three steps a phase.

    The peak does not depend on the number of steps. peak_mb: of the process with torch and all
    networks; increase_mb: over what it held before. On a GPU both are of its memory.
    """
    # Not a `Pool`: it waits for ever for a process that was killed for its memory.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_memory, name, generator).result()


def _memory(name: str, generator: str) -> dict[str, float]:
    config = configured(generator)
    context = context_of(config)
    records = synthetic(context)
    steps = Steps(3 if name == "baseline" else 0, 3, 3)
    tried = METHODS[name](config, context, steps)
    if context.device == "cuda":
        before = torch.cuda.memory_allocated() / 1e6
        torch.cuda.reset_peak_memory_stats()
        trial(tried, records)
        peak = torch.cuda.max_memory_allocated() / 1e6
    else:
        before = machine.held_mb()
        trial(tried, records)
        peak = machine.peak_mb()
    return {"peak_mb": peak, "increase_mb": peak - before}
