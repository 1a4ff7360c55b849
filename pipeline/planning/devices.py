"""Which GPUs and cores a run uses: what is really there, not what Ray was told."""

from __future__ import annotations

import os
import platform
from typing import Literal

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.config import Config

# Parameters of glibc's mallopt.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


def physical_gpus() -> int:
    """CUDA devices that torch can use on this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def torch_device(config: Config) -> Literal["cpu", "cuda"]:
    """Where workers compute. Tests replace it, to hold GPUs of Ray that do not exist."""
    return "cuda" if config.gpus else "cpu"


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing_gpus(asked: int, there: int) -> Refused:
    """The error for GPUs that were asked for and are not there."""
    return Refused(
        f"--gpus {asked}",
        f"it asks for {asked} GPU{'s' if asked > 1 else ''}, this machine has {there} that torch "
        "can use",
        f"use --gpus {there}{' to run on the CPU' if there == 0 else ''}, or --address to join a "
        "Ray cluster that has them; see `dhr-batch doctor`",
    )


def worker_count(config: Config, shards: int) -> int:
    """How many workers to start: one per GPU share or per `threads` cores, at most one per shard.

    No row depends on it.
    """
    if config.gpus:
        wanted = config.gpus * config.workers_per_gpu
    else:
        wanted = config.workers or max(1, cores() // config.threads)
    return max(1, min(wanted, shards))


def keep_freed_memory() -> None:
    """Keep what tensors free in this process instead of giving it back to the system each time.

    Otherwise the C library maps every large tensor anew, and the page faults take up to a fifth of
    an optimisation step. Does nothing where the library is not glibc.
    """
    import ctypes

    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Some versions refuse more than 32 MiB, and answer 0.
    if mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25):
        mallopt(_TRIM_THRESHOLD, 2**30)
