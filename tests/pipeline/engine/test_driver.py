"""What the driver asks workers for, and what it does with their answers, without any worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.engine.driver import Driver
from dhr_batch.pipeline.engine.members import Member
from dhr_batch.pipeline.engine.progress import Progress, RunCounters
from dhr_batch.pipeline.engine.status import StatusWriter
from dhr_batch.pipeline.engine.tasks import (
    CloseShard,
    OneImage,
    OpenShard,
    WholeShard,
    following,
)
from dhr_batch.pipeline.errors import RunFailed
from dhr_batch.pipeline.planning import config
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.stopping import Stopper
from dhr_batch.pipeline.worker.messages import Report
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.tests.pipeline.attempts import attempt


def a_shard(*names: str) -> Shard:
    return Shard(4, tuple(Item(name, "", name, 1) for name in names))


def a_driver(run: RunFolder) -> Driver:
    settings = config.build([config.preset("tiny"), {"dataset": "d"}])
    state = RunCounters(total=1, shards=1)
    return Driver(
        run,
        Settings(settings, aligned=True, split="", device="cpu", out=run.storage.address),
        todo=(),
        progress=Progress(state, "none", quiet=True),
        workers=1,
        on_ready=lambda facts: None,
        status=StatusWriter(state, write=lambda content: None),
        stopper=Stopper(),
    )


def test_a_receipt_that_does_not_add_up_fails_the_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.lock()
    driver = a_driver(run)
    driver.crew.members[0] = Member(handle=None)
    answer = Report([], 0.0, "", attempt(run, 4))
    with pytest.raises(RunFailed, match="do not add up to the 1 planned"):
        driver.worked(WholeShard(0, a_shard("a.png"), "4-1"), answer)
    assert run.committed() == {}
    run.unlock()


def test_an_opened_shard_is_asked_for_image_by_image_and_then_closed() -> None:
    shard = a_shard("a.png", "b.png")
    opened = OpenShard(0, shard, "4-1", lost={})
    first = following(opened)
    assert isinstance(first, OneImage)
    second = following(first)
    assert isinstance(second, OneImage)
    assert (opened.image, first.image, second.image) == (None, *shard.items)
    last = following(second)
    assert last == CloseShard(0, shard, "4-1")
    assert last.image is None
