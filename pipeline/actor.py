"""The worker as a Ray actor: the same class, with a second thread that answers for its progress."""

from __future__ import annotations

from typing import Any

import ray

from dhr_batch.pipeline.worker import Worker


class ShardActor(Worker):
    """A `Worker` whose `events` can be called while a shard is running."""

    @ray.method(concurrency_group="progress")
    def events(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return super().events()


def remote(gpu_share: float, cpus: float) -> Any:
    """The actor class with its resources. It never restarts by itself: the driver decides."""
    # Ray's type hints do not know `concurrency_groups`.
    options: dict[str, Any] = {
        "num_gpus": gpu_share,
        "num_cpus": cpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "concurrency_groups": {"progress": 1},
    }
    return ray.remote(**options)(ShardActor)
