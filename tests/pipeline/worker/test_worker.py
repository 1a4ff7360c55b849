"""One shard in this process: what overlaps, what order rows have, what errors come out."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.tables.files import TableFile
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.stages.record import Record
from dhr_batch.tests import no_op
from dhr_batch.tests.faults import harness
from dhr_batch.tests.faults.stages import Align, FaultOptions
from dhr_batch.tests.faults.test_independence import TINY, crops


class Asking(Align):
    """Calls a function with each batch; counts as any stage."""

    def __init__(self, name: str, ask: Callable[[Sequence[Record]], None]) -> None:
        super().__init__(FaultOptions(name=name))
        self.family, self.ask = name, ask  # type: ignore[misc]

    def process(self, records: Sequence[Record]) -> list[Record]:
        self.ask(records)
        return list(records)


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    items = harness.photographs(tmp_path / "in", [f"good-{i}.png" for i in range(7)])
    return harness.make(items, shard_size=7, batch_size=2)


def worker(made: Plan, folder: Path, *stages: Asking, divided: bool = False) -> Worker:
    aligned, out = made.dataset.aligned, str(folder)
    built = Worker(Settings(made.config, aligned, "", "cpu", out, divided=divided))
    built.setup()
    if stages:
        built.stages = list(stages)
    return built


def test_the_next_batch_is_aligned_while_one_is_computed(tmp_path: Path, made: Plan) -> None:
    aligned: list[str] = []
    threads: set[str] = set()
    second = threading.Event()

    def align(records: Sequence[Record]) -> None:
        threads.add(threading.current_thread().name)
        aligned.extend(r.image_id for r in records)
        if len(aligned) > 2:
            second.set()

    def embed(records: Sequence[Record]) -> None:
        threads.add(threading.current_thread().name)
        assert second.wait(60), "nothing is read while a batch is computed"
        # One batch ahead, and no more: pictures are large.
        ahead = len(aligned) - int(records[0].image_id[5]) - len(records)
        assert ahead <= 2

    receipt = worker(made, tmp_path, Asking("align", align), Asking("embed", embed)).run_shard(
        made.shards[0], "a"
    )
    assert receipt.ok == 7
    assert threads == {"reader", "MainThread"}
    assert aligned == [f"good-{i}.png" for i in range(7)]
    assert receipt.stage_seconds.keys() == {"align", "embed"}


def test_host_and_device_work_on_different_batches(tmp_path: Path, made: Plan) -> None:
    """The photographs of a batch are segmented and measured while others are on the device."""
    barrier, device = threading.Barrier(3), threading.Lock()
    at_once = {("embed", 6), ("segment", 4), ("measure", 0)}

    def stage(name: str) -> Asking:
        def ask(records: Sequence[Record]) -> None:
            alone = name in ("embed", "refine", "edit")
            assert not alone or device.acquire(blocking=False), "the device is shared"
            if (name, int(records[0].image_id[5])) in at_once:
                barrier.wait(60)
            if alone:
                device.release()

        return Asking(name, ask)

    names = ("align", "embed", "segment", "refine", "edit", "measure")
    built = worker(made, tmp_path, *map(stage, names), divided=True)
    receipt = built.run_shard(made.shards[0], "a")
    assert receipt.ok == 7
    assert receipt.stage_seconds.keys() == set(names)
    assert not [t.name for t in threading.enumerate() if t.name.startswith(("part", "reader"))]


def test_what_works_beside_the_device_has_a_stream_of_its_own(
    tmp_path: Path, made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, seen = threading.local(), {}

    @contextmanager
    def stream(kind: str, part: str) -> Iterator[None]:
        current.part = part
        yield
        del current.part

    def stage(name: str) -> Asking:
        return Asking(name, lambda _: seen.update({name: getattr(current, "part", "")}))

    monkeypatch.setattr("dhr_batch.pipeline.worker.worker.stream", stream)
    names = ("align", "embed", "segment", "refine", "edit", "measure")
    worker(made, tmp_path, *map(stage, names), divided=True).run_shard(made.shards[0], "a")
    assert seen == dict.fromkeys(names, "") | {
        "align": "reader",
        "segment": "segment",
        "measure": "measure",
    }


def test_rows_do_not_depend_on_what_is_done_at_once(tmp_path: Path) -> None:
    items = crops(tmp_path / "in", 10)
    made = harness.make(items, aligned=True, shard_size=4, batch_size=2, **TINY)
    files = []
    for divided in (False, True):
        built = worker(made, tmp_path / f"{divided}", divided=divided)
        jobs = [built._take(shard, f"{shard.index}") for shard in made.shards]
        for _ in jobs:
            built._line.compute()
        receipts = [built._line.finish(job) for job in jobs]
        assert [receipt and receipt.ok for receipt in receipts] == [4, 4, 2]
        files.append([receipt and receipt.files for receipt in receipts])
    assert files[0] == files[1]


def test_pace_tells_how_long_a_batch_takes(tmp_path: Path, made: Plan) -> None:
    go = threading.Event()
    built = worker(
        made, tmp_path, Asking("align", lambda _: None), Asking("embed", lambda _: go.wait())
    )
    thread = threading.Thread(target=built.run_shard, args=(made.shards[0], "a"))
    thread.start()
    deadline = time.monotonic() + 60
    while built.events().pace < 0.2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    go.set()
    thread.join()
    report = built.events()
    assert report.pace == 0
    assert sum(event.done for event in report.events) == 7


def test_a_read_without_an_end_is_told_and_blames_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def hang(*_: Any) -> bytes:
        assert go.wait(60)
        return b""

    items = harness.photographs(tmp_path / "in", ["a.png", "b.png"])
    made = harness.make(items, image_timeout=0.1, shard_size=2)
    built = worker(made, tmp_path)
    monkeypatch.setattr("dhr_batch.pipeline.worker.waits._READ_SECONDS", 0.2)
    monkeypatch.setattr("dhr_batch.pipeline.datasets.listing.read_bytes", hang)
    receipts: list[Manifest] = []
    thread = threading.Thread(target=lambda: receipts.append(built.run_shard(made.shards[0], "a")))
    thread.start()
    deadline = time.monotonic() + 60
    while not (report := built.events()).stuck:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # An overdue stage would be held against the image.
    assert report.pace == 0
    assert re.search(r"/in/a\.png for \d+ s: is its file system mounted", report.stuck)
    go.set()
    thread.join()
    assert built.events().stuck == ""
    assert (receipts[0].ok, receipts[0].quarantined) == (2, 0)


@pytest.mark.parametrize("step", ["append", "close"])
def test_a_write_without_an_end_is_told_and_blames_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Plan, step: str
) -> None:
    go, work = threading.Event(), getattr(TableFile, step)

    def hang(*arguments: Any) -> Any:
        assert go.wait(60)
        return work(*arguments)

    config = made.config.model_copy(update={"image_timeout": 0.1})
    built = worker(replace(made, config=config), tmp_path)
    monkeypatch.setattr("dhr_batch.pipeline.worker.waits._WRITE_SECONDS", 0.2)
    monkeypatch.setattr(TableFile, step, hang)
    thread = threading.Thread(target=built.run_shard, args=(made.shards[0], "a"))
    thread.start()
    deadline = time.monotonic() + 30
    while not (report := built.events()).stuck and time.monotonic() < deadline:
        time.sleep(0.05)
    go.set()
    thread.join()
    assert re.search(r"no answer from .* for \d+ s: is its file system mounted", report.stuck)
    assert report.pace == 0
    assert built.events().stuck == ""


def test_one_by_one_gives_the_same_files(tmp_path: Path, made: Plan) -> None:
    built, shard = worker(made, tmp_path), made.shards[0]
    together = built.run_shard(shard, "together")
    built.isolate(shard, "alone", {})
    # What happens while the tables are closed is held against no image.
    assert [built.next_image() for _ in range(7)] == [None] * 7
    alone = built.next_image()
    assert alone is not None
    assert alone.files == together.files
    built.isolate(shard, "without", {"good-3.png": ("crash", "good-3.png: ended three workers")})
    without = [built.next_image() for _ in range(8)][-1]
    assert without is not None
    assert (without.ok, without.errors) == (6, {"crash": 1})


def test_a_full_disk_behind_comes_out_of_the_shard(
    tmp_path: Path, made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    built = worker(made, tmp_path)
    monkeypatch.setattr(TableFile, "append", full)
    with pytest.raises(OSError, match=r"(?i)no space left"):
        built.run_shard(made.shards[0], "a")
    assert not {t.name for t in threading.enumerate()} & {"reader", "writer"}


def test_a_bug_ahead_comes_out_of_the_shard(tmp_path: Path, made: Plan) -> None:
    def broken(_: Sequence[Record]) -> None:
        raise TypeError("not ready")

    built = worker(made, tmp_path, Asking("align", broken), Asking("embed", lambda _: None))
    with pytest.raises(TypeError, match="not ready"):
        built.run_shard(made.shards[0], "a")
    assert not {t.name for t in threading.enumerate()} & {"reader", "writer"}


def test_no_op_stages_fit_together(tmp_path: Path) -> None:
    items = harness.photographs(tmp_path / "in", ["a.png"])
    made = harness.make(items, **no_op.NAMES)
    assert worker(made, tmp_path).run_shard(made.shards[0], "a").ok == 1
