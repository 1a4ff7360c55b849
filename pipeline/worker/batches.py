"""The number of images that a worker computes together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from dhr_batch.stages.base import Stage
from dhr_batch.stages.record import Record

if TYPE_CHECKING:
    from dhr_batch.stages.networks.generators.generator import Generator

ON_CPU = 4
# Larger batches are not faster on a GPU, and a failure costs more.
MOST = 32
# The share of the memory to use. The rest is for other shapes and for fragmentation.
_SHARE = 0.8
# Stages that compute one image of a batch after the other.
_ONE_BY_ONE = ("edit", "measure")


def fitting(needed: Callable[[int], int], workers: int, gpu: Any) -> int:
    """Return the largest batch size that fits into the memory of a GPU.

    The total memory is used, not the free one, so that another start forms the same batches.

    Args:
        needed: A function that returns the bytes that a batch of a size needs.
        workers: The number of workers that share the GPU.
        gpu: The module of torch for the device, such as `torch.cuda`.

    Returns:
        A power of two, at most `MOST`.
    """
    room = gpu.mem_get_info()[1] * _SHARE / workers - gpu.memory_allocated()
    size = MOST
    while size > 1 and needed(size) > room:
        size //= 2
    return size


def measured(
    stages: Sequence[Stage],
    beside: Collection[str],
    generator: Generator,
    workers: int,
    device: str,
) -> int:
    """Return the batch size that fits for some stages, measured on a generated picture.

    Stages take turns, so of these only the largest counts. What is computed beside them, on other
    batches, is added. Edits and metrics are computed image by image, so their memory does not
    depend on the size of a batch. The record also has the results of earlier stages, because a run
    may begin at a later stage.

    Args:
        stages: The stages of the run.
        beside: The families of stages that work while others do.
        generator: The generator that renders a random code.
        workers: The number of workers that share the GPU.
        device: The device of torch.
    """
    import numpy as np
    import torch

    from dhr_batch.stages.networks.generators.generator import STYLE_WIDTH
    from dhr_batch.stages.tensors import tensor_to_images

    z = torch.randn(1, STYLE_WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        code = generator.broadcast(generator.map(z.to(generator.w_mean)))
        (picture,) = tensor_to_images(generator.synthesize(code))
    mask = np.zeros(picture.shape[:2], bool)
    mask[: len(mask) // 2] = True
    probe = Record(
        "probe",
        "probe",
        image=picture,
        latent=code[0].cpu().numpy(),
        inverted=picture,
        labels=np.zeros(mask.shape, np.uint8),
        mask=mask,
        refined=picture,
    )

    gpu = torch.get_device_module(device)
    before = gpu.memory_allocated()
    peaks: dict[str, int] = {}
    records = [probe]
    for stage in stages:
        gpu.reset_peak_memory_stats()
        records = stage.run(records)
        peaks[stage.family] = gpu.max_memory_allocated() - before
        # The sample need not be a face that can be measured, nor refined as edits expect.
        if records[0].failure is not None and stage.family not in _ONE_BY_ONE:
            raise RuntimeError(f"a sample of the generator fails: {records[0].failure.message}")

    def needed(count: int) -> int:
        sizes = {f: peak * (1 if f in _ONE_BY_ONE else count) for f, peak in peaks.items()}
        added = sum(sizes.pop(family, 0) for family in beside)
        return added + max(sizes.values(), default=0)

    return fitting(needed, workers, gpu)
