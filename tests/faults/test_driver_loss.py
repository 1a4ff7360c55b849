"""A driver dies on the head of a cluster whose other machines live on, with its workers on them."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.faults import processes
from dhr_batch.tests.faults.machines import SMALL, machine, members

pytestmark = pytest.mark.slow


@pytest.fixture
def head() -> Iterator[Cluster]:
    """The head of a cluster, on which no worker has room."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    yield made
    made.shutdown()


def workers(nodes: list[Any]) -> set[int]:
    """The processes of the workers on these machines."""
    found = set()
    for pid in (pid for node in nodes for pid in members(node)):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ShardActor"):
                found.add(pid)
    return found


def gone(before: set[int], nodes: list[Any]) -> float:
    """Wait for the end of workers whose driver is killed now. Returns the seconds it took."""
    began = time.monotonic()
    processes.until(lambda: not before & workers(nodes), "the workers of the dead driver end", 60)
    return time.monotonic() - began


@pytest.mark.parametrize(("place", "frozen"), [("local", True), ("s3", False)], indirect=["place"])
def test_workers_that_outlive_their_driver_end_and_the_same_command_goes_on(
    slow_runs: Any,
    make_reference: Callable[..., Any],
    same: Callable[..., None],
    place: str,
    frozen: bool,
    head: Cluster,
) -> None:
    """Frozen ones cannot end by themselves; Ray does it."""
    words = ("--address", head.address)
    with (
        machine(head, 0, cpus=2) as one,
        machine(head, 0, cpus=2) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        nodes, storage = [one, other], connect(place)
        with slow_runs.start(place, *words) as driver:
            processes.until(
                lambda: len(storage.sizes("_state/shards")) >= 3 or driver.poll() is not None,
                "three shards are finished",
            )
            before = workers(nodes)
            if frozen:
                processes.send(before, signal.SIGSTOP)
            ended = pool.submit(gone, before, nodes)
            driver.send_signal(signal.SIGKILL)
            _, said = driver.communicate()
        assert driver.returncode == -signal.SIGKILL, said
        finished = len(storage.sizes("_state/shards"))
        assert len(before) == 4
        assert 3 <= finished < 12
        # At once: the machines may still be full of the workers of the dead driver.
        code, said = slow_runs.run(place, *words)
        assert code == 0, said
        assert f"resuming: {finished} shards are finished already" in said
        print(f"\n{finished} of 12 shards finished; workers ended after {ended.result():.1f} s")
    same(place, make_reference(slow_runs))
