"""Workers die alone or with their machine, wherever they stand; each costs its shard in hand.

The machines are raylets with logical GPUs on this one.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from dhr_batch.pipeline.engine.progress import Progress
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.faults import harness, processes
from dhr_batch.tests.faults.machines import SMALL, end, machine, members
from dhr_batch.tests.faults.stages import NAMES

pytestmark = pytest.mark.slow
NOTICED_SECONDS = 10.0
# Tables of an attempt that an object store holds when its worker stands at the point.
POINTS = {"mid-shard": 0, "staged-one-table": 1, "before-receipt": 7}
REASONS = {"worker": "the worker's process died", "node": "the node of the worker was lost"}


@pytest.fixture(scope="module", autouse=True)
def logical_gpus() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dhr_batch.pipeline.planning.devices.torch_device", lambda _config: "cpu")
        patch.setattr("dhr_batch.pipeline.planning.devices.physical_gpus", lambda: 8)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, where the driver runs, without GPUs."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, **SMALL})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """What the driver says, with the time it says it."""
    said: list[tuple[float, str]] = []
    before = Progress.say

    def say(self: Progress, text: str) -> None:
        said.append((time.monotonic(), text))
        before(self, text)

    monkeypatch.setattr(Progress, "say", say)
    return said


def losses(heard: list[tuple[float, str]], reason: str) -> dict[str, float]:
    """Worker -> when it was said to be lost for the first time. All must be lost for the reason.

    Until Ray counts a machine out it may look for a place there again: such a worker is lost twice.
    """
    found: dict[str, float] = {}
    for when, text in heard:
        if worker := re.match(r"worker \d+ is lost", text):
            assert reason in text
            found.setdefault(worker[0], when)
    return found


def manifests(place: str) -> list[dict[str, Any]]:
    storage = connect(place)
    return [json.loads(storage.read(key) or b"") for key in sorted(storage.sizes("_state/shards"))]


def made(folder: Path, images: int, **settings: Any) -> Any:
    items = harness.photographs(folder / "in", [f"good-{i:03}.png" for i in range(images)])
    return harness.make(items, shard_size=4, batch_size=1, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photographs")


@pytest.fixture
def compare(
    folder: Path, tmp_path: Path, cluster: Cluster, same: Callable[..., None]
) -> Callable[..., None]:
    """Checks that a run has the files of an undisturbed one of so many images and settings."""

    def check(place: str, images: int, **settings: Any) -> None:
        harness.run(made(folder, images, workers=4, **settings), tmp_path / "quiet")
        same(place, harness.Reference(harness.tables(tmp_path / "quiet")))

    return check


class Watcher:
    """Ends what it is told to as soon as all workers stand at their point; lets the others go on.

    killed: when. staged: files of each attempt in the place of the run at that time.
    """

    def __init__(self, place: str, nodes: list[Any], workers: int, victim: str) -> None:
        self.place, self.nodes, self.workers, self.victim = place, nodes, workers, victim
        self.over = threading.Event()
        self.killed = 0.0
        self.staged: Counter[str] = Counter()

    def watch(self, cluster: Cluster) -> None:
        stand, doomed = self._standing, self.nodes[-1]
        try:
            processes.until(lambda: len(stand()) == self.workers, f"{self.workers} workers stand")
            keys = connect(self.place).sizes("_staging")
            self.staged.update(key.split("/")[1] for key in keys)
            assert connect(self.place).sizes("_state/shards") == {}
            self.killed = time.monotonic()
            if self.victim == "node":
                end(cluster, doomed)
            else:
                processes.send(processes.standing(members(doomed))[:1], signal.SIGKILL)
        finally:
            # Those that take the place of the lost ones stand there, too.
            while not self.over.wait(0.1):
                processes.send(stand(), signal.SIGCONT)

    def _standing(self) -> list[int]:
        return processes.standing(pid for node in self.nodes for pid in members(node))


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("victim", REASONS)
def test_a_loss_at_any_point_costs_the_shards_in_hand(
    folder: Path,
    cluster: Cluster,
    place: str,
    heard: list[tuple[float, str]],
    compare: Callable[..., None],
    victim: str,
    point: str,
) -> None:
    """A worker, or a machine with 4 of 8 GPUs whose workers all stand at the point."""
    gpus = 4 if victim == "node" else 1
    stop = {"DHR_BATCH_CRASH_AT": point, "DHR_BATCH_CRASH_SIGNAL": "SIGSTOP"}
    plan = made(folder, 48, gpus=2 * gpus)
    with (
        machine(cluster, gpus, **stop) as one,
        machine(cluster, gpus, **stop) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        watcher = Watcher(place, [one, other], 2 * gpus, victim)
        watching = pool.submit(watcher.watch, cluster)
        try:
            outcome = harness.run(plan, place)
        finally:
            watcher.over.set()
        watching.result()
    lost = losses(heard, REASONS[victim])
    seconds = max(lost.values()) - watcher.killed
    redone = sum(manifest["attempts"] - 1 for manifest in manifests(place))
    print(f"\n{len(lost)} workers lost, noticed after {seconds:.1f} s; {redone} shards redone")
    assert (outcome.done, outcome.quarantined, outcome.exit_code) == (48, 0, 0)
    assert len(lost) == redone == gpus
    assert 0 < seconds <= NOTICED_SECONDS
    if "://" in place:
        assert watcher.staged.total() == POINTS[point] * 2 * gpus
    compare(place, 48)


def test_one_of_three_machines_goes_while_its_workers_work(
    folder: Path,
    tmp_path: Path,
    cluster: Cluster,
    heard: list[tuple[float, str]],
    compare: Callable[..., None],
) -> None:
    """8 GPUs on machines with 2, 3 and 3; the last one goes while its workers work."""
    place = str(tmp_path / "run")
    embed = {"name": NAMES["embed"], "seconds": 0.2}
    plan = made(folder, 160, gpus=8, embed=embed)
    killed: list[float] = []

    def lose(node: Any) -> None:
        processes.until(lambda: len(connect(place).sizes("_state/shards")) >= 8, "8 shards")
        killed.append(time.monotonic())
        end(cluster, node)

    with (
        machine(cluster, 2),
        machine(cluster, 3),
        machine(cluster, 3) as last,
        ThreadPoolExecutor(1) as pool,
    ):
        there = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
        assert sorted(there) == [0, 2, 3, 3]
        losing = pool.submit(lose, last)
        outcome = harness.run(plan, Path(place))
        losing.result()
    lost = losses(heard, REASONS["node"])
    seconds = max(lost.values()) - killed[0]
    redone = sum(manifest["attempts"] - 1 for manifest in manifests(place))
    print(f"\n{len(lost)} workers lost, noticed after {seconds:.1f} s; {redone} shards redone")
    assert (outcome.done, outcome.quarantined, outcome.exit_code) == (160, 0, 0)
    assert len(lost) == 3
    assert redone <= 3
    assert seconds <= NOTICED_SECONDS
    compare(place, 160, embed=embed)
