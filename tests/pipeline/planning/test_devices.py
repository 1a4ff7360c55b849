"""Memory of a worker: what tensors free is used again without asking the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from dhr_batch.pipeline.planning import config, devices

FAULTS = """
import resource, numpy as np
from dhr_batch.pipeline.planning.devices import keep_freed_memory
if {keep}: keep_freed_memory()
def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(48 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
touch()
print(touch())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt belongs to glibc")
def test_freed_memory_causes_no_page_faults_again() -> None:
    def faults(keep: bool) -> int:
        code = [sys.executable, "-c", FAULTS.format(keep=keep)]
        return int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)

    # Pages may be huge ones, so that even without it the faults are few.
    assert faults(True) <= 2 < faults(False)


def test_a_worker_reserves_its_share_of_the_cores_beside_its_gpu() -> None:
    def reserved(nodes: list[tuple[bool, int, int]], free: float = 1000, **settings: int) -> int:
        made = config.build([config.preset("tiny"), {"dataset": "d", **settings}])
        resources = [{"Alive": a, "Resources": {"CPU": c, "GPU": g}} for a, c, g in nodes]
        return devices.worker_cores(made, resources, free, 4)

    eight = (True, 64, 8)
    assert reserved([eight], gpus=4) == 8
    assert reserved([eight, (True, 16, 4), (False, 2, 2), (True, 2, 0)], gpus=4) == 4
    assert reserved([eight], gpus=4, workers_per_gpu=2) == 4
    assert reserved([eight], gpus=4, cpus_per_gpu=3) == 3
    assert reserved([(True, 2, 8)], gpus=4) == 1
    assert reserved([(True, 2, 8)], gpus=4, threads=2) == 2
    assert reserved([eight], gpus=0, threads=2) == 2
    # Something else holds a core, so the last of four workers would not fit.
    four = (True, 32, 4)
    assert reserved([four], free=32, gpus=4) == 8
    assert reserved([four], free=31, gpus=4) == 7
    assert reserved([four], free=31, gpus=4, cpus_per_gpu=8) == 8, "the user's choice"
    assert reserved([four], free=0, gpus=4) == 1


def test_two_runs_on_four_of_eight_gpus_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "physical_gpus", lambda: 8)
    monkeypatch.setattr(devices, "cores", lambda: 64)
    assert devices.gpu_cores(config.build([config.preset("tiny"), {"dataset": "d"}])) == 8
    made = config.build([config.preset("tiny"), {"dataset": "d", "cpus_per_gpu": 3}])
    assert devices.gpu_cores(made) == 3
