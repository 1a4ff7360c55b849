"""The worker as a Ray actor: the same class, with a second thread that answers for its progress."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import ray

from dhr_batch.pipeline.engine.messages import Report, WorkerFacts
from dhr_batch.pipeline.engine.worker import Lost, Settings, Worker
from dhr_batch.pipeline.engine.worker_log import WorkerLog
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.manifests import Manifest, Where
from dhr_batch.pipeline.storage.connect import connect

log = logging.getLogger("dhr_batch")


class ShardActor(Worker):
    """A `Worker` whose `events` can be called while a shard is running."""

    def __init__(self, settings: Settings, number: int) -> None:
        super().__init__(settings)
        self._number = number

    def join(self) -> Where:
        """The first call: answered once Ray has found a place. Opens the log; says where it runs.

        Raises OSError where the log cannot be written.
        """
        where = ray.get_runtime_context()
        gpus = where.get_accelerator_ids().get("GPU", [])
        node = where.get_node_id()[:12]
        self._where = Where(self._number, os.uname().nodename, os.getpid(), gpus, node)
        self._log = WorkerLog(connect(self.settings.out), self._number)
        log.info("worker %d started: %s", self._number, self._where)
        self._log.sync()
        return self._where

    def setup(self) -> WorkerFacts:
        return self._logged(super().setup)

    def run_shard(self, shard: Shard, attempt: str) -> Report:  # type: ignore[override]
        return self._report(self._logged(super().run_shard, shard, attempt))

    def isolate(self, shard: Shard, attempt: str, lost: Lost) -> Report:  # type: ignore[override]
        super().isolate(shard, attempt, lost)
        return self._report(None)

    def next_image(self) -> Report:  # type: ignore[override]
        return self._report(self._logged(super().next_image))

    @ray.method(concurrency_group="progress")
    def events(self) -> Report:  # type: ignore[override]
        return super().events()

    @ray.method(concurrency_group="progress")
    def close(self) -> None:
        """The last call: sees that the log is where the run is."""
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
