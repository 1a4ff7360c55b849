"""Machines of a cluster: raylets on this one."""

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
    """One more raylet, whose workers see the variables; gone at the end."""
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
    """The raylet of a machine and its processes, among them the workers; none once it is gone."""
    raylets = node.all_processes.get("raylet", [])
    return [pid for raylet in raylets for pid in processes.family(raylet.process.pid)]


def end(cluster: Cluster, node: Any) -> None:
    """A machine without power: all its processes at once, so that none of them can say so."""
    processes.send(members(node), signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
