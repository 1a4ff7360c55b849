"""A driver without Ray, in this process: everything that is written to the place of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dhr_batch.pipeline.engine import runner
from dhr_batch.pipeline.planning.plan import Plan, Shard
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.report.write import write_report
from dhr_batch.pipeline.runs import card
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.records.manifests import Manifest, total
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker

Compute = Callable[[RunFolder, Shard], Manifest]


def drive(
    plan: Plan,
    place: str,
    compute: Compute,
    first: Callable[[RunFolder], object] = lambda run: None,
) -> None:
    """Do what `runner.run` does, except for the report.

    compute: makes an attempt at a shard; first: is called with the lease, before anything else.
    """
    request = Request(out=place)
    run = runner.claimed(plan, request)
    run.lock()
    try:
        first(run)
        plan = runner.continued(run, plan, request)
        before = run.recover()
        runner.keep_plan(run, plan)
        for shard in plan.shards:
            if shard.index not in before:
                run.commit(shard.index, compute(run, shard), len(shard.items))
        run.clear_staging()
        rows = total(shard.rows for shard in run.committed().values())
        card.write_card(run.storage, plan.head(), plan.images, rows)
    finally:
        run.unlock()


def worker(plan: Plan, place: str) -> Compute:
    """Return attempts by a worker of this process."""
    made = Worker(Settings(plan.config, plan.dataset.aligned, "", "cpu", place))
    made.setup()
    return lambda run, shard: made.run_shard(shard, run.new_attempt(shard.index, 1))


@contextmanager
def without_ray() -> Iterator[None]:
    """Let `runner.run`, and so every command, compute the shards in this process.

    Each run then takes seconds less. For tests of what is computed, and not of workers.
    """

    def process(
        plan: Plan, request: Request, run: RunFolder, _: object, todo: Iterator[Shard], __: object
    ) -> bool:
        runner.keep_plan(run, plan)
        made = Worker(runner.worker_settings(plan, run.storage))
        made.setup()
        for shard in todo:
            receipt = made.run_shard(shard, run.new_attempt(shard.index, 1))
            run.commit(shard.index, receipt, len(shard.items))
        return True

    threads = torch.get_num_threads()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner, "_process", process)
            yield
    finally:
        torch.set_num_threads(threads)


def finished(folder: Path) -> Path:
    """A finished run with a report: five pictures and a file that is none, in three shards.

    With the tiny networks, two steps per stage and two edits.
    """
    photographs = folder / "photographs"
    photographs.mkdir(parents=True)
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(photographs / f"{number}.png")
    (photographs / "5.png").write_bytes(b"no picture")
    dataset = folder / "photographs.yaml"
    dataset.write_text(f"root: {photographs}\naligned: true\n")
    edits = {"edits": [{"direction": "smile", "strengths": [-1, 1]}]}
    settings = {"dataset": str(dataset), "preset": "tiny", "gpus": 0, "edit": edits}
    plan = prepare(Request(settings=settings | {"shard_size": 2}))
    run = folder / "run"
    drive(plan, str(run), worker(plan, str(run)))
    write_report(run)
    return run
