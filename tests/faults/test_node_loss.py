"""A machine that disappears takes its workers with it, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from dhr_batch.tests.faults import harness
from dhr_batch.tests.faults.stages import NAMES, number

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def logical_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhr_batch.pipeline.devices.torch_device", lambda _config: "cpu")
    monkeypatch.setattr("dhr_batch.pipeline.devices.physical_gpus", lambda: 8)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three raylets with 2, 3 and 3 GPUs."""
    small = {"object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2, **small})
    for _ in range(2):
        made.add_node(num_cpus=4, num_gpus=3, **small)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def committed(out: Path) -> int:
    return len(list(out.glob("_state/shards/*.json")))


def when(ready: Any, action: Any) -> threading.Thread:
    """Do something in a thread as soon as a condition holds."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not ready():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def plan(folder: Path, images: int, **settings: Any) -> Any:
    items = harness.photographs(folder / "in", [f"good-{i}.png" for i in range(images)])
    embed = {"name": NAMES["embed"], "seconds": 0.25}
    return harness.make(items, gpus=8, shard_size=4, batch_size=1, embed=embed, **settings)


def test_a_lost_node_costs_its_shards_in_flight_only(
    tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    made, out = plan(tmp_path, 160), tmp_path / "out"
    node = cluster.list_all_nodes()[-1]
    removed = when(
        lambda: committed(out) >= 8,
        lambda: cluster.remove_node(node, allow_graceful=False),
    )
    outcome = harness.run(made, out)
    removed.join()
    assert (outcome.done, outcome.quarantined, outcome.exit_code) == (160, 0, 0)
    latents = harness.table(out, "latents")
    assert list(latents["image_id"]) == [f"good-{i}.png" for i in range(160)]
    values = [row[0][0] for row in latents["latent"]]
    assert values == pytest.approx([number(i) / 2**32 for i in latents["image_id"]])
    said = capsys.readouterr().err
    assert said.count("the node of the worker was lost") == 3
    assert not (out / "_staging").exists()
