"""Images per hour of a run on GPUs, computed. No GPU is measured.

python -m dhr_batch.benchmarks.throughput [--gpu NAME] [--json FILE]

The operations of the stages embed, refine, edit and measure of the default settings are counted on
tensors without numbers; those of a long optimisation follow from a few steps of each kind. An
operation takes as long as its arithmetic at the published rate of the GPU in FP32, or as the memory
that it reads and writes at the published bandwidth, or as its launch, which a batch shares,
whichever is longest. Real GPUs reach a part of these rates, so the times of the device are lower
bounds, and the images per hour of a GPU that limits the run are upper bounds.

A worker cannot be faster than its GPU, than its cores, and than the thread of the host that has the
most to do. CPU seconds are those that `python -m dhr_batch.benchmarks.host_seconds` prints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from dhr_batch.benchmarks import machine, profile
from dhr_batch.benchmarks.host_seconds import GENERATORS
from dhr_batch.benchmarks.operations import Operation, operations
from dhr_batch.pipeline.cli.output import Command

# TB/s of the memory, from the same documents as the rates.
BANDWIDTHS = {"H100 SXM": 3.35, "A100": 2.04, "RTX 3090": 0.936}
# Seconds from one launch to the next. Assumed.
LAUNCH = 5e-6
GPUS, CORES = (1, 8, 64), (8, 16, 32)


def seconds(operation: Operation, gpu: str, batch: int) -> float:
    """Return a lower bound of the time of an operation on a batch of one image, per image."""
    rate, bandwidth = profile.GPUS[gpu][0] * 1e12, BANDWIDTHS[gpu] * 1e12
    return max(operation.flops / rate, operation.traffic / bandwidth, LAUNCH / batch)


def counted(work: Callable[[], Any]) -> list[Operation]:
    """Return the operations of a function, which are not computed.

    The function may ask for a value of a tensor, but gets 1 or True.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Answering(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                return args[0].dtype is torch.bool or 1
            return func(*args, **kwargs or {})

    with FakeTensorMode(allow_non_fake_inputs=True), Answering(), operations() as found:
        work()
    return found


class Cost(NamedTuple):
    """What the device does for an image: operations, arithmetic, bytes, and a bound of the time."""

    launches: float
    flops: float
    traffic: float
    seconds: float


def stages_of(size: int, gpu: str, batch: int) -> dict[str, Cost]:
    """Return what each stage of the device does for one image.

    Args:
        size: The side of the pictures in pixels.
        gpu: The name of the GPU.
        batch: The number of images that share a launch.
    """
    import torch

    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.pipeline.planning.config import Config
    from dhr_batch.stages import registry
    from dhr_batch.stages.context import Context
    from dhr_batch.stages.measure import metrics
    from dhr_batch.stages.tensors import to_unit

    config: Config = profile.configured(GENERATORS[size])
    context = Context("cpu", config.generator, catalogue.path, config.seed)

    def cost(work: Callable[[], Any]) -> Cost:
        found = counted(work)
        flops, traffic = sum(o.flops for o in found), sum(o.traffic for o in found)
        return Cost(len(found), flops, traffic, sum(seconds(o, gpu, batch) for o in found))

    def steps(family: str, share: str, work: Callable[[Any], Any]) -> Cost:
        """Extrapolate from few steps. Steps of two kinds have the same cost each."""
        section = getattr(config, family)
        build = registry.lookup(family, section["name"])
        options = build.Options(**section)
        first = round(options.steps * getattr(options, share))
        member = build(options)
        member.setup(context)

        def few(first: int, second: int) -> Cost:
            count = first + second
            changed = {"steps": count, share: first / count}
            member.options = options.model_copy(update=changed)
            return cost(lambda: work(member))

        once, one, other = few(1, 1), few(2, 1), few(1, 2)
        more = (first - 1, options.steps - first - 1)
        counts = zip(once, one, other, strict=True)
        return Cost(*(a + more[0] * (b - a) + more[1] * (c - a) for a, b, c in counts))

    net = context.network("generator", config.generator)
    distance = context.network("perceptual", "st_lpips_alex")
    identity = context.network("identity", "dlib")
    edits = sum(len(edit["strengths"]) for edit in config.edit["edits"])

    def blank() -> Any:
        return torch.zeros(1, 3, size, size), torch.zeros(1, net.num_ws, net.w_mean.shape[-1])

    def embed(member: Any) -> None:
        images, _ = blank()
        codes = member.embed(images)
        with torch.no_grad():
            net.synthesize(codes)

    def refine(member: Any) -> None:
        images, codes = blank()
        member.refine(images, codes, torch.ones(1, 1, size, size))

    def edit() -> None:
        _, codes = blank()
        with torch.no_grad():
            # The refined picture as well.
            net.synthesize(codes.expand(1 + edits, -1, -1))

    def measure() -> None:
        with torch.no_grad():
            for side, count in ((256, 2 + edits), *(((size, 2),) if size > 256 else ())):
                pictures = torch.zeros(1 + count, side, side, 3, dtype=torch.uint8)
                masks = torch.zeros(3, side, side, dtype=torch.bool)
                metrics.pixel_values(pictures[:1], pictures[1:], 1, masks)
                distance.maps(to_unit(pictures[1:]), distance.features(to_unit(pictures[:1])))
            identity.net(torch.zeros(3 + edits, 3, 150, 150))

    return {
        "embed": steps("embed", "w_share", embed),
        "refine": steps("refine", "weight_share", refine),
        "edit": cost(edit),
        "measure": cost(measure),
    }


def limit(device: float, host: float, share: float, cores: int) -> tuple[float, str]:
    """Return the images per second of one GPU, and what limits them.

    Args:
        device: Seconds of the GPU per image.
        host: CPU seconds of the host per image.
        share: The share of these that the busiest thread of the host takes.
        cores: The number of cores for the GPU.
    """
    rates = {"device": 1 / device, "cores": cores / host, "thread": 1 / (host * share)}
    what = min(rates, key=lambda name: rates[name])
    return rates[what], what


def evaluate(
    seconds: dict[int, float], hosts: dict[int, float], share: float
) -> list[dict[str, Any]]:
    """Return a row for each size, number of cores and number of GPUs.

    Args:
        seconds: Seconds of the GPU per image by size.
        hosts: CPU seconds of the host per image by size.
        share: As in `limit`.
    """
    rows = []
    for size, device in seconds.items():
        for cores in CORES:
            rate, what = limit(device, hosts[size], share, cores)
            hourly = {str(gpus): 3600 * rate * gpus for gpus in GPUS}
            rows.append({"size": size, "cores": cores, "limit": what, "images_per_hour": hourly})
    return rows


def text(result: dict[str, Any]) -> str:
    """Return the tables of the counts and of the images per hour."""
    lines = [f"{'px':>5} {'stage':9}{'launches':>9}{'GFLOP':>10}{'GB':>9}{'ms':>9}"]
    lines += [
        f"{r['size']:5} {r['stage']:9}{r['launches']:9,.0f}{r['flops'] / 1e9:10,.0f}"
        f"{r['traffic'] / 1e9:9.1f}{1000 * r['seconds']:9.1f}"
        for r in result["stages"]
    ]
    numbers = "".join(f"{f'{gpus} GPUs':>12}" for gpus in GPUS)
    lines += ["", f"{'px':>5}{'cores':>7}  {'limited by':12}{numbers}   images per hour"]
    for row in result["rows"]:
        values = "".join(f"{value:12,.0f}" for value in row["images_per_hour"].values())
        lines.append(f"{row['size']:5}{row['cores']:7}  {row['limit']:12}{values}")
    return "\n".join(lines)


@click.command(cls=Command, help=__doc__)
@click.option("--gpu", type=click.Choice(list(BANDWIDTHS)), default="H100 SXM", show_default=True)
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Batch size.")
@click.option(
    "--host-seconds",
    "hosts",
    nargs=2,
    default=(1.0, 2.0),
    show_default=True,
    help="CPU seconds of the host per image at 256 and 1024 px.",
)
@click.option(
    "--thread-share",
    "share",
    default=0.3,
    show_default=True,
    help="Share of the CPU seconds that the busiest thread takes, `measure`.",
)
@machine.json_option
def main(gpu: str, batch: int, hosts: tuple[float, float], share: float, file: Path | None) -> None:
    stages, seconds = [], {}
    for size in GENERATORS:
        found = stages_of(size, gpu, batch)
        stages += [{"size": size, "stage": name} | own._asdict() for name, own in found.items()]
        seconds[size] = sum(own.seconds for own in found.values())
    result = {
        "gpu": gpu,
        "batch": batch,
        "computed": True,
        "device_seconds": seconds,
        "stages": stages,
        "rows": evaluate(seconds, dict(zip(GENERATORS, hosts, strict=True)), share),
    }
    click.echo(text(result))
    machine.write_json(result, file)


if __name__ == "__main__":
    main()
