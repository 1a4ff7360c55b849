"""The time of the parts of a refinement step, compared with lower bounds from their arithmetic.

python -m dhr_batch.benchmarks.profile [--generator NAME] [--steps N] [--json FILE]

The parts of a step of the default refinement are measured separately. The floor of a part is a
lower bound of its time: its floating-point operations, counted from the shapes of convolutions and
matrix products, divided by the rate at which this machine multiplies large matrices. The floors for
GPUs are computed from published rates, which real programs do not reach. Launches are the
operations that a GPU would be given, and GB what they read and write. No GPU is measured.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.benchmarks import machine
from dhr_batch.benchmarks.operations import operations
from dhr_batch.pipeline.cli.output import Command

if TYPE_CHECKING:
    from torch import Tensor

    from dhr_batch.pipeline.planning.config import Config
    from dhr_batch.stages.refine.dhr import HybridRefinement

Row = dict[str, Any]

# TFLOP/s for dense matrices in FP32 and TF32, from NVIDIA's white papers on the H100 Tensor Core,
# A100 Tensor Core and Ampere GA102 architectures.
GPUS = {"H100 SXM": (66.9, 494.7), "A100": (19.5, 156.0), "RTX 3090": (35.6, 35.6)}


class Parts:
    """The seconds and floating-point operations of named parts, in the order of first use.

    Attributes:
        seconds: The measured times of each part.
        flops: The number of operations of each part.
        launches: The number of kernels, at least, that a GPU would run for each part.
        bytes: The number of bytes that these read and write.
        counting: Whether operations are counted instead of measuring the time.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.flops: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.counting = False

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure a `with` block, or count its operations if `counting` is set."""
        if self.counting:
            with operations() as found:
                yield
            self.flops[name] += sum(own.flops for own in found)
            self.launches[name] += len(found)
            self.bytes[name] += sum(own.traffic for own in found)
            return
        machine.synchronise()
        began = time.perf_counter()
        yield
        machine.synchronise()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)


def configured(generator: str) -> Config:
    """Return the default settings for a generator.

    Raises:
        Refused: If the generator is unknown.
    """
    from dhr_batch.pipeline.planning import config

    layers = [config.preset("tiny")] if generator == "tiny" else []
    return config.resolve(config.build([*layers, {"generator": generator, "dataset": "-"}]), 0, 1)


def refiner(config: Config, **options: Any) -> HybridRefinement:
    """Return the default refiner, set up as in a worker.

    Args:
        config: The settings.
        **options: Options of the refiner that override the settings.
    """
    import torch

    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.pipeline.planning import devices
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.refine.dhr import HybridRefinement

    torch.set_num_threads(config.threads)
    if machine.device() == "cpu":
        devices.keep_freed_memory()
    stage = HybridRefinement(HybridRefinement.Options(**config.refine | options))
    stage.setup(Context(machine.device(), config.generator, catalogue.path, config.seed))
    return stage


def inputs(stage: HybridRefinement) -> tuple[Tensor, Tensor]:
    """Return a render of a random code as the source, and the mean code as its embedding."""
    import torch

    net = stage.generator
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(1, len(net.w_mean), generator=draw).to(net.w_mean)
    with torch.no_grad():
        return net.synthesize(net.broadcast(net.map(z))), net.broadcast(net.w_mean[None])


def step_of(generator: str, with_weights: bool) -> tuple[Parts, Callable[[], None]]:
    """Return a function that does one step of `HybridRefinement`, and the parts that it measures.

    The backward pass is divided at the image and at the feature layer.

    Args:
        generator: The name of the generator.
        with_weights: Whether weights and feature are optimized. Otherwise only the feature is, and
            everything before the feature layer is computed once.
    """
    import torch

    from dhr_batch.stages.refine.base import zero_delta
    from dhr_batch.stages.refine.dhr import MaskedLoss, adam_of, smallest, tuned_weights
    from dhr_batch.stages.refine.rotated_adam import RotatedAdam, rms
    from dhr_batch.stages.tensors import feature_mask

    stage = refiner(configured(generator))
    net, options = stage.generator, stage.options
    images, ws = inputs(stage)
    masks = torch.ones_like(images[:, :1])
    masks[:, :, :, masks.shape[-1] // 2 :] = 0

    names = tuned_weights(net, smallest(options, net)) if with_weights else []
    delta = zero_delta(net, names, 1)
    weights = [d.requires_grad_() for d in delta.values()]
    split = len(_before_feature(names, net, ws, delta))
    with torch.no_grad():
        inside, skip = net.trunk(ws, delta)
        feature = inside.clone()
    feature.requires_grad_()
    soft = feature_mask(masks, (feature.shape[2], feature.shape[3]))
    loss = MaskedLoss(options, stage.perceptual, images, masks)
    feature_adam = RotatedAdam([feature], [1], [rms(feature.detach())])
    weight_adam = adam_of(options, net, delta)
    parts = Parts()

    def step() -> None:
        x, sum_so_far = inside, skip
        if with_weights:
            with parts("trunk forward"):
                x, sum_so_far = net.trunk(ws, delta)
        # Autograd stops at these leaves, and the next part continues with their gradients.
        cut = [t.detach().requires_grad_(split > 0) for t in (x, sum_so_far) if t is not None]
        with parts("tail forward"):
            mixed = torch.lerp(feature, cut[0], soft)
            image = net.from_feature(mixed, ws, delta, cut[1] if len(cut) > 1 else None)
        picture = image.detach().requires_grad_()
        with parts("loss forward"):
            inner, outer = loss(picture)
            total = inner + outer if with_weights else outer
        with parts("loss backward"):
            (at_image,) = torch.autograd.grad(total, [picture])
        tail = [feature, *(cut if split else []), *weights[split:]]
        with parts("tail backward"):
            grads = torch.autograd.grad(image, tail, at_image)
        before: tuple[Tensor, ...] = ()
        if split:
            through = [t for t in (x, sum_so_far) if t is not None]
            with parts("trunk backward"):
                before = torch.autograd.grad(through, weights[:split], grads[1 : 1 + len(cut)])
        with parts("optimiser"):
            feature_adam.step(grads[:1], options.feature_rate)
            behind = grads[len(tail) - len(weights[split:]) :]
            weight_adam.step([*before, *behind], options.weight_rate)

    return parts, step


def _before_feature(names: list[str], net: Any, ws: Tensor, delta: dict[str, Tensor]) -> list[str]:
    """Return the weights on which the feature layer depends. They are the first ones."""
    import torch

    if not names:
        return []
    outputs = [t for t in net.trunk(ws, delta) if t is not None and t.requires_grad]
    if not outputs:
        return []
    values = [delta[name] for name in names]
    grads = torch.autograd.grad([t.sum() for t in outputs], values, allow_unused=True)
    reached = [grad is not None for grad in grads]
    # `tuned_weights` are in the order of the synthesis, so these weights must be the first.
    assert reached == sorted(reached, reverse=True), "weights are out of order"
    return [name for name, hit in zip(names, reached, strict=True) if hit]


def profiled(kind: str, generator: str, steps: int) -> list[Row]:
    """Measure one kind of step.

    Args:
        kind: `weight` or `feature`.
        generator: The name of the generator.
        steps: The number of measured steps.

    Returns:
        A row for each part, and one for their sum.
    """
    parts, step = step_of(generator, with_weights=kind == "weight")
    # The first step fills caches and computes the bases of the rotated optimizer.
    step()
    parts.counting = True
    step()
    parts.counting = False
    for _ in range(steps):
        step()
    rows: list[Row] = []
    for name, seconds in parts.seconds.items():
        counts = {"gflop": parts.flops[name] / 1e9, "gb": parts.bytes[name] / 1e9}
        counts["launches"] = parts.launches[name]
        rows.append({"step": kind, "part": name, "ms": 1000 * median(seconds[1:])} | counts)
    sums = {key: sum(row[key] for row in rows) for key in ("ms", "gflop", "gb", "launches")}
    return [*rows, {"step": kind, "part": "all", **sums}]


def matmul_gflops(size: int = 2048, rounds: int = 7) -> float:
    """Return the rate of a float32 matrix product in GFLOP/s, the median of several rounds.

    Args:
        size: The number of rows and columns.
        rounds: The number of measured products.
    """
    import torch

    a = torch.randn(size, size, device=machine.device())
    seconds = []
    for _ in range(rounds + 1):
        machine.synchronise()
        began = time.perf_counter()
        a @ a
        machine.synchronise()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / median(seconds[1:]) / 1e9


def measure(generator: str, steps: int) -> dict[str, Any]:
    """Measure both kinds of steps, and compute the lower bounds for an image."""
    from dhr_batch.stages import registry

    config = configured(generator)
    rows = profiled("weight", generator, steps)
    rate = matmul_gflops()
    rows += profiled("feature", generator, steps)
    # The better of two, because other programs may have used the machine during one of them.
    rate = max(rate, matmul_gflops())
    for row in rows:
        row["floor_ms"] = 1000 * row["gflop"] / rate
    whole = {row["step"]: row for row in rows if row["part"] == "all"}
    weights = round(config.refine["steps"] * config.refine["weight_share"])
    counts = {"weight": weights, "feature": config.refine["steps"] - weights}
    image = {
        key: sum(count * whole[kind][key] for kind, count in counts.items())
        for key in ("ms", "gflop", "gb", "launches", "floor_ms")
    }
    gpus = [
        {"gpu": gpu, "number": number, "tflops": tflops, "computed": True}
        | {"floor_ms_per_image": image["gflop"] / tflops}
        for gpu, both in GPUS.items()
        for number, tflops in zip(("FP32", "TF32"), both, strict=True)
    ]
    return {
        "generator": registry.label(config.generator),
        "machine": machine.describe(),
        "matmul_gflops": rate,
        "steps": counts,
        "image": image,
        "rows": rows,
        "gpus": gpus,
    }


def text(result: dict[str, Any]) -> str:
    """Return tables of the parts and of the floors for GPUs."""
    lines = [
        f"{'step':9}{'part':16}{'ms':>9}{'share':>8}{'GFLOP':>9}{'floor ms':>10}{'ratio':>8}"
        f"{'GB':>8}{'launches':>10}"
    ]
    whole = {row["step"]: row["ms"] for row in result["rows"] if row["part"] == "all"}
    for row in result["rows"]:
        lines.append(
            f"{row['step']:9}{row['part']:16}{row['ms']:9.1f}{row['ms'] / whole[row['step']]:8.0%}"
            f"{row['gflop']:9.2f}{row['floor_ms']:10.1f}{row['floor_ms'] / row['ms']:8.0%}"
            f"{row['gb']:8.2f}{row['launches']:10d}"
        )
    image, counts, about = result["image"], result["steps"], result["machine"]
    lines += [
        "",
        f"one image, {counts['weight']} weight and {counts['feature']} feature steps: "
        f"{image['ms'] / 1000:.2f} s, {image['gflop']:.0f} GFLOP, "
        f"floor {image['floor_ms'] / 1000:.2f} s at {result['matmul_gflops']:.0f} GFLOP/s; "
        f"{image['gb']:.0f} GB, {image['launches']} launches",
        f"{about['device']}, {about['threads']} torch threads, torch {about['torch']}; "
        f"{result['generator']}",
        "",
        "floor per image, computed from published rates, not measured:",
    ]
    lines += [
        f"{g['gpu']:10}{g['number']:6}{g['tflops']:8.1f} TFLOP/s{g['floor_ms_per_image']:9.1f} ms"
        for g in result["gpus"]
    ]
    return "\n".join(lines)


@click.command(cls=Command, help=__doc__)
@click.option("--generator", default="mobilestylegan-256", show_default=True, help="Generator.")
@click.option(
    "--steps",
    default=7,
    show_default=True,
    type=click.IntRange(1),
    help="Number of measured steps of each kind.",
)
@machine.json_option
def main(generator: str, steps: int, file: Path | None) -> None:
    result = measure(generator, steps)
    click.echo(text(result))
    machine.write_json(result, file)


if __name__ == "__main__":
    main()
