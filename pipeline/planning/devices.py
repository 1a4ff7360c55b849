"""The GPUs and CPU cores that a run uses, as torch and the kernel count them, not Ray."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from typing import Any

from dhr_batch.pipeline.cores import cores
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning.config import Config
from dhr_batch.stages import device

# Parameters of glibc's mallopt.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


def physical_gpus() -> int:
    """Return the number of CUDA devices that torch can use on this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def number(config: Config, remote: bool) -> int:
    """Return the number of GPUs of a run, from its settings `device` and `gpus`.

    Args:
        config: The settings.
        remote: Whether the run joins a cluster, whose GPUs are not counted.

    Raises:
        Refused: If the settings contradict each other, or a cluster has an unknown number.
    """
    kind, gpus = config.device, config.gpus
    if kind is not None and gpus is not None and (kind == "cpu") != (gpus == 0):
        raise Refused(
            f"--device {kind} with --gpus {gpus}",
            "the CPU has no GPUs" if kind == "cpu" else f"{kind} is a GPU",
            f"leave out --gpus, or use --gpus {0 if kind == 'cpu' else 1}",
        )
    if kind == "cpu" or gpus is not None:
        return gpus or 0
    if kind is None:
        return 0 if remote else physical_gpus()
    if remote:
        raise Refused(
            f"--device {kind} with --address",
            "the number of GPUs of the cluster is unknown",
            "give it with --gpus",
        )
    device.check(kind)
    return device.count(kind)


def torch_device(config: Config) -> device.Kind:
    """Return the device of workers. Tests replace this function to simulate GPUs."""
    return config.device or ("cuda" if config.gpus else "cpu")


def missing_gpus(wanted: int, available: int) -> Refused:
    """Return the error for a run that wants more GPUs than this machine has."""
    return Refused(
        f"--gpus {wanted}",
        f"it asks for {wanted} GPU{'s' if wanted > 1 else ''}, this machine has {available} that "
        "torch can use",
        f"use --gpus {available}{' to run on the CPU' if available == 0 else ''}, or --address to "
        "join a Ray cluster that has them; see `dhr-batch doctor`",
    )


def worker_count(config: Config, shards: int) -> int:
    """Return the number of workers to start.

    This is `workers_per_gpu` for each GPU, or one for every `threads` cores of the CPU, but at most
    one per shard. No row depends on it.
    """
    if config.gpus:
        wanted = config.gpus * config.workers_per_gpu
    else:
        wanted = config.workers or max(1, cores() // config.threads)
    return max(1, min(wanted, shards))


def gpu_cores(config: Config) -> int:
    """Return the number of cores of this machine for each GPU, at least 1."""
    return config.cpus_per_gpu or max(1, cores() // max(1, physical_gpus()))


def worker_cores(
    config: Config, nodes: Iterable[Mapping[str, Any]], free: float, workers: int
) -> int:
    """Return the number of cores that a worker reserves, at least `threads`.

    With a GPU, this is its share of `cpus_per_gpu`, by default of the cores of the machine that has
    the fewest cores per GPU, but no more than are free for each worker. A worker on the CPU
    reserves `threads`.

    Args:
        config: The settings of the run.
        nodes: The machines of the cluster, as `ray.nodes` returns them.
        free: The number of cores of the cluster that nothing has reserved.
        workers: The number of workers of the run.
    """
    if not config.gpus:
        return config.threads
    found = [node["Resources"] for node in nodes if node["Alive"]]
    shares = [int(have.get("CPU", 0) // have["GPU"]) for have in found if have.get("GPU")]
    cpus = (config.cpus_per_gpu or min(shares, default=1)) // config.workers_per_gpu
    if config.cpus_per_gpu is None:
        cpus = min(cpus, int(free // workers))
    return max(config.threads, cpus)


def keep_freed_memory() -> None:
    """Let this process reuse the memory of freed tensors instead of returning it to the system.

    Otherwise the C library maps new memory for every large tensor, and the page faults take up to a
    fifth of the time of an optimisation step. Does nothing if the library is not glibc.
    """
    import ctypes

    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Some versions reject more than 32 MiB by returning 0.
    if mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25):
        mallopt(_TRIM_THRESHOLD, 2**30)
