"""Simulated machines of a cluster: further raylets on this one."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from dhr_batch.tests.faults import processes

SMALL = {"object_store_memory": 80 * 2**20}


@contextlib.contextmanager
def machine(cluster: Cluster, gpus: int, cpus: int = 4, **env: str) -> Iterator[Any]:
    """Run one more raylet until the end of the block. Its workers have the given variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        node = cluster.add_node(num_cpus=cpus, num_gpus=gpus, **SMALL)
    try:
        yield node
    finally:
        if node in cluster.worker_nodes:
            end(cluster, node)
        # Else Ray would offer its GPUs to the next test.
        cluster.wait_for_nodes(timeout=120)


def members(node: Any) -> list[int]:
    """Return the raylet of a machine and its child processes; empty after it has ended."""
    raylets = node.all_processes.get("raylet", [])
    return [pid for raylet in raylets for pid in processes.family(raylet.process.pid)]


def end(cluster: Cluster, node: Any) -> None:
    """Kill all processes of a machine at once, as a power failure does."""
    processes.send(members(node), signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
