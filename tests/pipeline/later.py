"""Finished runs without Ray, and runs that begin from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dhr_batch.pipeline.planning import resume
from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.planning.prepare import place, prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker

IDS = ["a.png", "b.png", "c.png", "sub/d.png", "sub/e.png"]
EDITS = {"edit": {"edits": [{"direction": "smile", "strengths": [-1, 0, 2]}]}}
PTI = {"refine": {"name": "pti", "steps": 2, "perceptual": "tiny"}}


def made(out: Path, **settings: Any) -> Path:
    """A finished run without Ray: planned, computed and committed as the driver does it."""
    request = Request(settings={"gpus": 0} | settings, out=out)
    planned = prepare(request)
    folder = RunFolder(place(planned, request))
    folder.lock()
    planned = resume.continued(folder, out, planned)
    if folder.plan() is None:
        folder.write_plan(planned.stored())
    compute(planned, folder)
    folder.unlock()
    return out


def compute(planned: Plan, folder: RunFolder) -> None:
    aligned, out = planned.dataset.aligned, folder.storage.address
    worker = Worker(Settings(planned.config, aligned, "", "cpu", out, truths=planned.truths))
    worker.setup()
    done = folder.recover()
    for shard in planned.shards:
        if shard.index not in done:
            receipt = worker.run_shard(shard, folder.new_attempt(shard.index, 1))
            folder.commit(shard.index, receipt, len(shard.items))


def whole(photographs: str, out: Path, **settings: Any) -> Path:
    plain = {"dataset": photographs, "preset": "tiny", "shard_size": 2} | EDITS
    return made(out, **plain | settings)
