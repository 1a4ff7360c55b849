"""The shards in hand: what happens at once, how much is in memory, and what a failure costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dhr_batch.pipeline.datasets.items import Item
from dhr_batch.pipeline.planning.plan import Shard
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.worker.line import Job, Line, Writing
from dhr_batch.stages import failures
from dhr_batch.stages.record import Record

Step = Callable[[str, int], None]


class Steps:
    """A line that calls `step` with what it does and the number of the shard."""

    def __init__(self, step: Step = lambda what, shard: None, parts: int = 1) -> None:
        self.step = step
        self.written: dict[int, list[str]] = {}
        self.deleted: list[int] = []
        self.line = Line(self.read, lambda: [self.compute] * parts, self.write)

    def read(self, job: Job, items: Sequence[Item]) -> list[Record]:
        self.step("read", job.shard.index)
        return [Record(item.image_id, "") for item in items]

    def compute(self, job: Job, first: int, records: list[Record]) -> list[Record]:
        assert records[0].image_id == job.shard.items[first].image_id
        self.step("compute", job.shard.index)
        return records

    def write(self, job: Job) -> Writing:
        shard = job.shard.index
        names = self.written.setdefault(shard, [])
        try:
            while (records := (yield)) is not None:
                self.step("write", shard)
                names += [record.image_id for record in records]
        except GeneratorExit:
            self.deleted.append(shard)
            raise
        return Manifest(job.attempt, ok=len(names))

    def add(self, shards: int, images: int = 1, batch_size: int = 1) -> list[Job]:
        names = [[f"{shard}-{i}" for i in range(images)] for shard in range(shards)]
        made = [
            Job(Shard(number, tuple(Item(name, "", name, 1) for name in own)), f"{number}")
            for number, own in enumerate(names)
        ]
        for job in made:
            self.line.add(job, batch_size)
        return made


def test_one_shard_is_read_one_computed_and_one_written_at_once() -> None:
    """Each of them has a single batch."""
    barrier = threading.Barrier(3)

    def step(what: str, shard: int) -> None:
        if (what, shard) in {("read", 2), ("compute", 1), ("write", 0)}:
            barrier.wait(60)

    steps = Steps(step)
    jobs = steps.add(3, images=4, batch_size=4)
    for _ in jobs:
        steps.line.compute()
    receipts = [steps.line.finish(job) for job in jobs]
    assert [receipt and receipt.ok for receipt in receipts] == [4, 4, 4]
    assert not {t.name for t in threading.enumerate()} & {"reader", "writer"}


@pytest.mark.parametrize(("images", "parts", "batches"), [(1, 1, 4), (3, 1, 4), (1, 4, 9)])
def test_so_many_batches_are_in_memory_and_no_more(images: int, parts: int, batches: int) -> None:
    held, most, gate, lock = 0, 0, threading.Event(), threading.Lock()

    def step(what: str, shard: int) -> None:
        nonlocal held, most
        if what == "read":
            with lock:
                held += 1
                most = max(most, held)
        if what == "write":
            assert gate.wait(60)
            with lock:
                held -= 1

    steps = Steps(step, parts)
    jobs = steps.add(batches + 4, images)
    thread = threading.Thread(target=lambda: [steps.line.compute() for _ in jobs])
    thread.start()
    deadline = time.monotonic() + 60
    while held < batches:
        assert time.monotonic() < deadline, "too little is done ahead"
        time.sleep(0.01)
    time.sleep(0.2)
    gate.set()
    for job in jobs:
        steps.line.finish(job)
    thread.join()
    assert most == batches
    assert steps.written == {n: [f"{n}-{i}" for i in range(images)] for n in range(batches + 4)}


@pytest.mark.parametrize("where", ["read", "compute", "write"])
def test_a_failure_costs_the_other_shards_nothing(where: str) -> None:
    def step(what: str, shard: int) -> None:
        if (what, shard) == (where, 1):
            raise ValueError(where)

    steps = Steps(step)
    jobs = steps.add(3, images=4, batch_size=2)
    for _ in jobs:
        steps.line.compute()
    with pytest.raises(ValueError, match=where):
        steps.line.finish(jobs[1])
    receipts: list[Any] = [steps.line.finish(jobs[n]) for n in (0, 2)]
    assert [receipt.ok for receipt in receipts] == [4, 4]
    assert 1 not in steps.written or steps.written[1] == []


def test_nothing_is_computed_in_a_process_that_cannot_be_used() -> None:
    computed = []

    def step(what: str, shard: int) -> None:
        if what == "compute":
            computed.append(shard)
        if (what, shard) == ("compute", 1):
            raise failures.Poisoned("illegal memory access")

    steps = Steps(step)
    jobs = steps.add(3)
    for _ in jobs:
        steps.line.compute()
    assert steps.line.finish(jobs[0]) is not None
    for job in jobs[1:]:
        with pytest.raises(failures.Poisoned):
            steps.line.finish(job)
    assert computed == [0, 1]


def test_what_a_failed_shard_has_written_is_deleted() -> None:
    done: list[str] = []
    written = threading.Event()

    def step(what: str, shard: int) -> None:
        done.append(what)
        if what == "write":
            written.set()
        if what == "compute" and done.count("compute") == 2:
            assert written.wait(60)
            raise ValueError("second batch")

    steps = Steps(step)
    (job,) = steps.add(1, images=9)
    steps.line.compute()
    with pytest.raises(ValueError, match="second batch"):
        steps.line.finish(job)
    assert steps.deleted == [0]
    assert (done.count("compute"), done.count("write")) == (2, 1)
    assert done.count("read") < 5, "the rest is not read"


def test_only_shards_whose_computation_has_not_begun_are_given_back() -> None:
    begun, go = threading.Event(), threading.Event()

    def step(what: str, shard: int) -> None:
        if what == "compute":
            begun.set()
            assert go.wait(60)

    steps = Steps(step)
    jobs = steps.add(3, images=2)
    thread = threading.Thread(target=lambda: [steps.line.compute() for _ in jobs])
    thread.start()
    assert begun.wait(60)
    steps.line.give_back()
    go.set()
    receipts = [steps.line.finish(job) for job in jobs]
    thread.join()
    assert [receipt and receipt.ok for receipt in receipts] == [2, None, None]
    assert steps.written == {0: ["0-0", "0-1"]}


def test_a_line_goes_on_after_it_was_empty() -> None:
    steps = Steps()
    assert steps.line.read == -1
    for _ in range(3):
        (job,) = steps.add(1)
        steps.line.compute()
        assert steps.line.finish(job) is not None
        assert steps.line.read == 0
