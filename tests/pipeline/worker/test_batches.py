"""How many images a GPU gets at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dhr_batch.pipeline.models import catalogue
from dhr_batch.pipeline.planning import config
from dhr_batch.pipeline.worker import batches
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages.context import Context

GB = 10**9


class Memory:
    """What `torch.cuda` says of a GPU that holds networks, and of images that need more."""

    def __init__(self, total: int, networks: int, image: int) -> None:
        self.total, self.networks, self.image, self.peak = total, networks, image, total

    def memory_allocated(self) -> int:
        return self.networks

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.networks

    def max_memory_allocated(self) -> int:
        return self.peak

    def mem_get_info(self) -> tuple[int, int]:
        return 0, self.total


@pytest.mark.parametrize(
    ("total", "image", "workers", "size"),
    [
        # 0.8 x 24 GB without 1 GB of networks holds nine.
        (24 * GB, 2 * GB, 1, 8),
        (24 * GB, 2 * GB, 2, 4),
        (8 * GB, 9 * GB, 1, 1),
        # The networks of eight workers leave nothing.
        (24 * GB, GB // 4, 24, 1),
        (80 * GB, GB, 1, batches.MOST),
        (80 * GB, 0, 1, batches.MOST),
    ],
)
def test_as_many_images_as_memory_holds(total: int, image: int, workers: int, size: int) -> None:
    gpu = Memory(total, GB, image)
    assert batches.fitting(lambda count: count * image, workers, gpu) == size


@pytest.mark.parametrize(
    ("first", "divided", "size"),
    [
        ("align", False, 8),
        ("embed", False, 8),
        ("segment", False, 8),
        ("refine", False, 8),
        ("edit", False, batches.MOST),
        # 0.8 x 24 GB without 1 GB of networks and 2 GB for metrics hold four images that are
        # refined and four that are segmented.
        ("align", True, 4),
        # Nothing is segmented.
        ("refine", True, 8),
        ("edit", True, batches.MOST),
    ],
)
def test_a_gpu_worker_tries_one_image_of_all_stages(
    first: str, divided: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"dataset": "-", "batch_size": None, "first_stage": first}
    settings = config.build([config.preset("tiny"), chosen])
    worker = Worker(Settings(config.resolve(settings, 0, 1), False, "", "cpu", str(tmp_path)))
    assert worker.setup().batch_size == batches.ON_CPU

    gpu = Memory(24 * GB, GB, 2 * GB)
    for name in ("memory_allocated", "reset_peak_memory_stats", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", gpu.max_memory_allocated)
    ran: list[str] = []
    for stage in worker.stages:
        original = stage.run

        def noted(records, stage=stage, original=original):  # type: ignore[no-untyped-def]
            ran.append(stage.family)
            gpu.peak = gpu.networks + gpu.image
            return original(records)

        monkeypatch.setattr(stage, "run", noted)
    settings = Settings(worker.settings.config, False, "", "cuda", "", divided=divided)
    monkeypatch.setattr(worker, "settings", settings)
    net = Context("cpu", "tiny", catalogue.path).network("generator", "tiny")
    assert worker._fitting_batch(net) == size
    assert ran == [stage for stage in worker.settings.config.stages if stage != "align"]
