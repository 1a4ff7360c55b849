"""The worker as a Ray actor, with a second thread that reports its progress."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ray

from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.records.manifests import Manifest, Where
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.worker.messages import IN_HAND, Lost, Report, WorkerFacts
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.pipeline.worker.worker_log import WorkerLog

log = logging.getLogger("dhr_batch")


class ShardActor(Worker):
    """A `Worker` whose methods can be called while shards are running.

    On a CPU all stages run in one thread, in which the networks were loaded. On a GPU the parts of
    the computation have a thread each (`Line`).
    """

    def __init__(self, settings: Settings, number: int) -> None:
        super().__init__(settings)
        self._number = number
        self._computing = ThreadPoolExecutor(1, "stages")

    def join(self) -> Where:
        """Open the log and return where the worker runs. This is the first call.

        It is answered as soon as Ray has started the actor.

        Raises:
            OSError: If the log cannot be written.
        """
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        node = context.get_node_id()[:12]
        self._where = Where(self._number, os.uname().nodename, os.getpid(), gpus, node)
        self._log = WorkerLog(connect(self.settings.out), self._number)
        log.info("worker %d started: %s", self._number, self._where)
        self._log.sync()
        return self._where

    def setup(self) -> WorkerFacts:
        return self._logged(self._computing.submit(super().setup).result)

    @ray.method(concurrency_group="shards")
    def run_shard(self, shard: Shard, attempt: str) -> Report:  # type: ignore[override]
        """Like `Worker.run_shard`. The report has no receipt if the shard was given back."""
        job = self._take(shard, attempt)
        self._computing.submit(self._line.compute)
        return self._report(self._logged(self._line.finish, job))

    def isolate(self, shard: Shard, attempt: str, lost: Lost) -> Report:  # type: ignore[override]
        super().isolate(shard, attempt, lost)
        return self._report(None)

    def next_image(self) -> Report:  # type: ignore[override]
        return self._report(self._logged(self._computing.submit(super().next_image).result))

    @ray.method(concurrency_group="progress")
    def events(self) -> Report:  # type: ignore[override]
        return super().events()

    @ray.method(concurrency_group="progress")
    def give_back(self) -> None:
        """Give back the shards whose computation has not begun."""
        self._line.give_back()

    @ray.method(concurrency_group="progress")
    def close(self) -> None:
        """Upload the rest of the log. This is the last call."""
        self._log.close()

    def _report(self, receipt: Manifest | None) -> Report:
        signed = receipt and replace(receipt, worker=self._where)
        return replace(super().events(), receipt=signed)

    def _logged(self, work: Any, *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception:
            log.exception("worker %d", self._number)
            raise
        finally:
            self._log.sync()


def remote(gpu_share: float, cpus: float) -> Any:
    """Return the actor class with its resources.

    Ray never restarts an actor by itself: the driver decides.

    Args:
        gpu_share: The number of GPUs of a worker, for example 0.5 if two workers share one.
        cpus: The number of CPU cores of a worker.
    """
    # Ray's type hints lack `concurrency_groups`.
    options: dict[str, Any] = {
        "num_gpus": gpu_share,
        "num_cpus": cpus,
        "max_restarts": 0,
        "max_task_retries": 0,
        "concurrency_groups": {"progress": 1, "shards": IN_HAND},
    }
    return ray.remote(**options)(ShardActor)
