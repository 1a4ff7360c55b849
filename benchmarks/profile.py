"""Where the time of a refinement step goes, against the least that its arithmetic takes.

python -m dhr_batch.benchmarks.profile [--generator NAME] [--steps N] [--json FILE]

The parts of a step of the default refinement are clocked one by one. The floor of each is its
floating-point operations, counted from the shapes of convolutions and matrix products, at the rate
at which this machine multiplies large matrices. Floors for GPUs are computed from their published
rates: no GPU is measured, and none reaches its published rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from dhr_batch.benchmarks import machine
from dhr_batch.pipeline.cli.output import Command

if TYPE_CHECKING:
    from torch import Tensor

    from dhr_batch.pipeline.planning.config import Config
    from dhr_batch.stages.refine_dhr import HybridRefinement

Row = dict[str, Any]

# Dense TFLOP/s in FP32 and TF32, from NVIDIA's white papers on the H100 Tensor Core, A100 Tensor
# Core and Ampere GA102 architectures.
GPUS = {"H100 SXM": (66.9, 494.7), "A100": (19.5, 156.0), "RTX 3090": (35.6, 35.6)}


class Parts:
    """Seconds and operations of named parts, in the order in which they were met first."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.flops: dict[str, int] = {}
        self.counting = False

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Clock what is done in this block; count it instead while `counting`."""
        if self.counting:
            with counter() as counted:
                yield
            self.flops[name] = self.flops.get(name, 0) + counted.get_total_flops()
            return
        machine.synchronise()
        began = time.perf_counter()
        yield
        machine.synchronise()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)


def counter() -> Any:
    """Counts the operations of convolutions and matrix products; 2 for a multiplication and sum."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

    def backward(grad: Any, x: Any, weight: Any, *rest: Any, **_: Any) -> int:
        # Torch's own formula counts a grouped convolution's weight gradient as that of a full one.
        transposed, wanted = rest[4], rest[7]
        once = conv_flop_count(x, weight, grad, transposed)
        return once * (int(wanted[0]) + int(wanted[1]))

    mapping = {torch.ops.aten.convolution_backward: backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def configured(generator: str) -> Config:
    """The default settings for a generator. Raises Refused for an unknown one."""
    from dhr_batch.pipeline.planning import config

    layers = [config.preset("tiny")] if generator == "tiny" else []
    return config.resolve(config.build([*layers, {"generator": generator, "dataset": "-"}]), 0, 1)


def refiner(config: Config, **options: Any) -> HybridRefinement:
    """The default refiner as a worker sets it up; options: other than those of the settings."""
    import torch

    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.pipeline.planning import devices
    from dhr_batch.stages.base import Context
    from dhr_batch.stages.refine_dhr import HybridRefinement

    torch.set_num_threads(config.threads)
    if machine.device() == "cpu":
        devices.keep_freed_memory()
    stage = HybridRefinement(HybridRefinement.Options(**config.refine | options))
    stage.setup(Context(machine.device(), config.generator, catalogue.path, config.seed))
    return stage


def inputs(stage: HybridRefinement) -> tuple[Tensor, Tensor]:
    """A render of a random code, to be refined, and the mean code to begin from."""
    import torch

    net = stage.generator
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(1, len(net.w_mean), generator=draw).to(net.w_mean)
    with torch.no_grad():
        return net.synthesize(net.broadcast(net.map(z))), net.broadcast(net.w_mean[None])


def step_of(generator: str, with_weights: bool) -> tuple[Parts, Callable[[], None]]:
    """A step of `HybridRefinement`, and the parts it reports to.

    Its backward pass is cut at the image and at the feature layer. with_weights: it moves weights
    and feature; else the feature alone, and what lies before it is computed once.
    """
    import torch

    from dhr_batch.stages.refine import zero_delta
    from dhr_batch.stages.refine_dhr import MaskedLoss, tuned_weights
    from dhr_batch.stages.rotated_adam import RotatedAdam, channels
    from dhr_batch.stages.tensors import feature_mask

    stage = refiner(configured(generator))
    net, options = stage.generator, stage.options
    images, ws = inputs(stage)
    masks = torch.ones_like(images[:, :1])
    masks[:, :, :, masks.shape[-1] // 2 :] = 0

    names = tuned_weights(net, options.smallest_layer) if with_weights else []
    delta = zero_delta(net, names, 1)
    weights = [d.requires_grad_() for d in delta.values()]
    split = len(_before_feature(names, net, ws, delta))
    with torch.no_grad():
        inside, skip = net.trunk(ws, delta)
        feature = inside.clone()
    feature.requires_grad_()
    soft = feature_mask(masks, (feature.shape[2], feature.shape[3]))
    loss = MaskedLoss(options, stage.perceptual, images, masks)
    feature_adam = RotatedAdam([feature], [1])
    weight_adam = RotatedAdam(weights, [channels(w) for w in weights])
    parts = Parts()

    def step() -> None:
        x, sum_so_far = inside, skip
        if with_weights:
            with parts("trunk forward"):
                x, sum_so_far = net.trunk(ws, delta)
        # Leaves at the cuts: autograd stops there, and the next part goes on from their gradients.
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
    """Those of the weights that the feature layer depends on; they come first."""
    import torch

    if not names:
        return []
    outputs = [t for t in net.trunk(ws, delta) if t is not None and t.requires_grad]
    if not outputs:
        return []
    values = [delta[name] for name in names]
    grads = torch.autograd.grad([t.sum() for t in outputs], values, allow_unused=True)
    reached = [grad is not None for grad in grads]
    # The order of `tuned_weights` is that of the synthesis, but image heads come where they stand.
    assert reached == sorted(reached, reverse=True), "weights before and behind the feature mix"
    return [name for name, hit in zip(names, reached, strict=True) if hit]


def profiled(kind: str, generator: str, steps: int) -> list[Row]:
    """Rows of the parts of one kind of step, `weight` or `feature`, and of their sum."""
    parts, step = step_of(generator, with_weights=kind == "weight")
    # The first step fills caches, and finds the bases of the rotated optimiser.
    step()
    parts.counting = True
    step()
    parts.counting = False
    for _ in range(steps):
        step()
    rows: list[Row] = []
    for name, seconds in parts.seconds.items():
        ms, gflop = 1000 * median(seconds[1:]), parts.flops[name] / 1e9
        rows.append({"step": kind, "part": name, "ms": ms, "gflop": gflop})
    sums = {key: sum(row[key] for row in rows) for key in ("ms", "gflop")}
    return [*rows, {"step": kind, "part": "all", **sums}]


def matmul_gflops(size: int = 2048, rounds: int = 7) -> float:
    """Rate of a float32 matrix product, GFLOP/s: median of several."""
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
    """Both kinds of steps, and what an image takes at least."""
    from dhr_batch.stages import registry

    config = configured(generator)
    rows = profiled("weight", generator, steps)
    rate = matmul_gflops()
    rows += profiled("feature", generator, steps)
    # The better of two: others may have used the machine during one.
    rate = max(rate, matmul_gflops())
    for row in rows:
        row["floor_ms"] = 1000 * row["gflop"] / rate
    whole = {row["step"]: row for row in rows if row["part"] == "all"}
    weights = round(config.refine["steps"] * config.refine["weight_share"])
    counts = {"weight": weights, "feature": config.refine["steps"] - weights}
    image = {
        key: sum(count * whole[kind][key] for kind, count in counts.items())
        for key in ("ms", "gflop", "floor_ms")
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
    """Tables of the parts and of the GPUs' floors."""
    lines = [f"{'step':9}{'part':16}{'ms':>9}{'share':>8}{'GFLOP':>9}{'floor ms':>10}{'of it':>8}"]
    whole = {row["step"]: row["ms"] for row in result["rows"] if row["part"] == "all"}
    for row in result["rows"]:
        lines.append(
            f"{row['step']:9}{row['part']:16}{row['ms']:9.1f}{row['ms'] / whole[row['step']]:8.0%}"
            f"{row['gflop']:9.2f}{row['floor_ms']:10.1f}{row['floor_ms'] / row['ms']:8.0%}"
        )
    image, counts, about = result["image"], result["steps"], result["machine"]
    lines += [
        "",
        f"one image, {counts['weight']} weight and {counts['feature']} feature steps: "
        f"{image['ms'] / 1000:.2f} s, {image['gflop']:.0f} GFLOP, "
        f"floor {image['floor_ms'] / 1000:.2f} s at {result['matmul_gflops']:.0f} GFLOP/s",
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
@click.option("--generator", default="mobilestylegan-256", show_default=True)
@click.option("--steps", default=7, show_default=True, type=click.IntRange(1), help="of each kind")
@machine.json_option
def main(generator: str, steps: int, file: Path | None) -> None:
    result = measure(generator, steps)
    click.echo(text(result))
    machine.write_json(result, file)


if __name__ == "__main__":
    main()
