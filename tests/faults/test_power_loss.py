"""Power is lost, or a call fails, at every step of a run; the same command finishes it.

Every change of the disk and every request to the store is such a step, from the first one to the
dataset card. `make test` tries some of them, `make test-faults` all.
"""

from __future__ import annotations

import errno
import json
import random
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.planning.plan import Plan, Shard
from dhr_batch.pipeline.runs.deletion import delete
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import staging
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.runs.reopening import reopen
from dhr_batch.pipeline.runs.verify import verify
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.objects import ObjectStorage
from dhr_batch.tests.faults import driven, harness
from dhr_batch.tests.faults.disk import Disk, PowerLoss
from dhr_batch.tests.faults.harness import tables

SHARDS, SAMPLE = 2, 4


@dataclass(frozen=True)
class Job:
    """A run whose shards are computed already. parts: receipt and files of each shard."""

    plan: Plan
    parts: dict[int, tuple[Manifest, dict[str, bytes]]]
    finished: Path

    def compute(self, run: RunFolder, shard: Shard) -> Manifest:
        receipt, files = self.parts[shard.index]
        attempt = run.new_attempt(shard.index, 1)
        with run.storage.stage(staging(attempt)) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)
        return Manifest.from_json(receipt.to_json() | {"attempt": attempt})

    def drive(self, place: str, what: str = "run") -> None:
        driven.drive(self.plan, place, self.compute, FIRST[what])

    def check(self, place: str) -> None:
        """Check that a run has the rows of the undisturbed one, and no leftovers."""
        assert tables(place) == tables(self.finished)
        found = verify(place)
        assert (found.problems, found.notes, found.complete) == ([], [], True)
        assert connect(place).sizes("_staging") == {}


def _retry(run: RunFolder) -> None:
    """As `quarantine retry` for an image of the first shard."""
    if (plan := run.plan()) is not None:
        run.recover()
        reopen(run, {0: {plan.shards[0][0]}})


# What is done before the run is driven: nothing, or what needs a finished one.
FIRST: dict[str, Callable[[RunFolder], object]] = {
    "run": lambda run: None,
    "retry": _retry,
    "fresh": delete,
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    items = harness.photographs(folder / "in", [f"{number}.png" for number in range(2 * SHARDS)])
    plan = harness.make(items, shard_size=2)
    computed, parts = RunFolder(folder / "computed"), {}
    compute = driven.worker(plan, str(folder / "computed"))
    for shard in plan.shards:
        receipt = compute(computed, shard)
        staged = (folder / "computed" / staging(receipt.attempt)).iterdir()
        parts[shard.index] = receipt, {path.name: path.read_bytes() for path in staged}
    job = Job(plan, parts, folder / "finished")
    job.drive(str(job.finished))
    assert sorted({key.partition("/")[2] for key in tables(job.finished)}) == [
        f"part-{shard:05d}.parquet" for shard in range(SHARDS)
    ]
    return job


def steps(count: int, chosen: str) -> list[int]:
    """The steps to fail at: all of them, or some that are always the same."""
    every = range(1, count + 1)
    return list(every) if chosen == "all" else random.Random(count).sample(every, SAMPLE)


all_or_some = pytest.mark.parametrize(
    "chosen", ["some", pytest.param("all", marks=pytest.mark.slow)]
)


def disk_of(job: Job, folder: Path, what: str) -> Path:
    """A disk with the finished run, or without any. Returns the place of the run."""
    if what == "run":
        folder.mkdir(parents=True)
    else:
        shutil.copytree(job.finished, folder / "run")
    return folder / "run"


def calls_of(job: Job, folder: Path, what: str) -> int:
    """The number of calls that change the disk in an undisturbed run."""
    place = disk_of(job, folder, what)
    with Disk(folder).watch() as disk:
        job.drive(str(place), what)
    job.check(str(place))
    return disk.calls


@pytest.mark.parametrize("what", FIRST)
@all_or_some
def test_a_power_loss_is_made_up_for(job: Job, tmp_path: Path, what: str, chosen: str) -> None:
    """With none, each and all of the changes that were not flushed."""
    count, draw = calls_of(job, tmp_path / "count", what), random.Random(18)
    for step in steps(count, chosen):
        folder = tmp_path / f"{step}"
        place = disk_of(job, folder, what)

        def fail(call: int, step: int = step) -> None:
            if call == step:
                raise PowerLoss

        with pytest.raises(PowerLoss), Disk(folder, fail).watch() as disk:
            job.drive(str(place), what)
        for share in (0.0, 0.5, 1.0):
            left = tmp_path / "left"
            disk.survivors(left, share, draw)
            job.drive(str(left / "run"))
            job.check(str(left / "run"))
            shutil.rmtree(left)
        shutil.rmtree(folder)
    print(f"\n{what}: {len(steps(count, chosen))} of {count} steps, three disks each")


def test_what_was_committed_survives_a_power_loss(job: Job, tmp_path: Path) -> None:
    """A finished run lacks nothing, even if nothing survives that was not flushed."""
    folder = tmp_path / "disk"
    place = disk_of(job, folder, "run")
    with Disk(folder).watch() as disk:
        job.drive(str(place))
    disk.survivors(tmp_path / "left", 0.0, random.Random(0))
    assert tables(tmp_path / "left" / "run") == tables(job.finished)
    assert verify(tmp_path / "left" / "run").problems == []


def test_the_disk_loses_what_was_not_flushed(tmp_path: Path) -> None:
    """The fake itself: each of these ways to write a file is safe, or is not."""
    root = tmp_path / "disk"
    root.mkdir()
    storage = connect(root)
    with Disk(root).watch() as disk:
        storage.replace("safe", b"content")
        (root / "never").write_bytes(b"content")
        (root / "new").write_bytes(b"content")
        (root / "new").replace(root / "renamed")
        (root / "safe").unlink()
    for share, left in ((0.0, {"safe": b"content"}), (1.0, {"never": b"con", "renamed": b"con"})):
        disk.survivors(tmp_path / f"{share}", share, random.Random(0))
        found = {path.name: path.read_bytes() for path in (tmp_path / f"{share}").iterdir()}
        assert found == left


@pytest.mark.parametrize("what", FIRST)
@all_or_some
def test_a_failing_disk_is_made_up_for(job: Job, tmp_path: Path, what: str, chosen: str) -> None:
    count = calls_of(job, tmp_path / "count", what)
    for step in steps(count, chosen):
        folder = tmp_path / f"{step}"
        place = disk_of(job, folder, what)

        def fail(call: int, step: int = step) -> None:
            if call == step:
                raise OSError(errno.EIO, "Input/output error")

        with suppress(OSError), Disk(folder, fail).watch():
            job.drive(str(place), what)
        job.drive(str(place))
        job.check(str(place))
        shutil.rmtree(folder)
    print(f"\n{what}: {len(steps(count, chosen))} of {count} steps")


class Requests:
    """Counts the requests to object stores, and lets one of them fail."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.step, self.done = 0, 0, False
        self._lock, self._call = threading.Lock(), ObjectStorage._call
        patch.setattr(ObjectStorage, "_call", lambda *arguments: self._counted(*arguments))

    def _counted(self, storage: ObjectStorage, what: str, request: Callable[[], Any]) -> Any:
        with self._lock:
            self.count += 1
            fails = self.count == self.step
        if fails and not self.done:
            raise StorageError(f"cannot {what}")
        found = self._call(storage, what, request)
        if fails:
            raise StorageError(f"no answer to {what}")
        return found


def released(place: str) -> None:
    """Release the lease of a driver that could not do it: it names this process, which is alive."""
    storage = connect(place)
    if (lease := storage.read("_state/lease")) is not None:
        storage.replace("_state/lease", json.dumps(json.loads(lease) | {"released": True}).encode())


@pytest.mark.parametrize("done", [False, True], ids=["request lost", "answer lost"])
@all_or_some
def test_a_failing_store_is_made_up_for(
    job: Job, bucket: str, monkeypatch: pytest.MonkeyPatch, done: bool, chosen: str
) -> None:
    requests = Requests(monkeypatch)
    job.drive(f"{bucket}/count")
    count, requests.done = requests.count, done
    job.check(f"{bucket}/count")
    for step in steps(count, chosen):
        place = f"{bucket}/{step}"
        requests.count, requests.step = 0, step
        with suppress(StorageError):
            job.drive(place)
        requests.step = 0
        released(place)
        job.drive(place)
        job.check(place)
    print(f"\n{len(steps(count, chosen))} of {count} requests")
