"""The number of images that a worker computes together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dhr_batch.stages.base import Record, Stage

if TYPE_CHECKING:
    from dhr_batch.stages.networks.generator import Generator

ON_CPU = 4
# Larger batches are not faster on a GPU, and a failure costs more.
MOST = 32
# The share of the memory to use. The rest is for other shapes and for fragmentation.
_SHARE = 0.8


def fitting(work: Callable[[], Any], workers: int, gpu: Any) -> int:
    """Return the largest batch size that fits into the memory of a GPU.

    The total memory is used, not the free one, so that another start forms the same batches.

    Args:
        work: A function that computes one image.
        workers: The number of workers that share the GPU.
        gpu: The module of torch for the device, such as `torch.cuda`.

    Returns:
        A power of two, at most `MOST`.
    """
    before = gpu.memory_allocated()
    gpu.reset_peak_memory_stats()
    work()
    image = max(1, gpu.max_memory_allocated() - before)
    total = gpu.mem_get_info()[1]
    room = int((total * _SHARE / workers - before) // image)
    return 1 << max(1, min(room, MOST)).bit_length() - 1


def measured(stages: Sequence[Stage], generator: Generator, workers: int, device: str) -> int:
    """Return the batch size that fits for some stages, measured on a generated picture.

    The record also has the results of earlier stages, because a run may begin at a later stage.

    Args:
        stages: The stages of the run.
        generator: The generator that renders a random code.
        workers: The number of workers that share the GPU.
        device: The device of torch.
    """
    import numpy as np
    import torch

    from dhr_batch.stages.networks.generator import STYLE_WIDTH
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

    def work() -> None:
        records = [probe]
        for stage in stages:
            records = stage.run(records)
        if records[0].failure is not None:
            raise RuntimeError(f"a sample of the generator fails: {records[0].failure.message}")

    return fitting(work, workers, torch.get_device_module(device))
