"""Attempts become part of a run once, completely, or not at all; on disks and in object stores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline import lease
from dhr_batch.pipeline.commit import Refused, RunFolder, staging
from dhr_batch.pipeline.lease import LeaseLost
from dhr_batch.pipeline.storage import Storage, StorageError, connect
from dhr_batch.pipeline.verify import verify


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    return str(request.getfixturevalue("bucket")) + "/run"


@pytest.fixture
def run(place: str) -> Iterator[RunFolder]:
    run = RunFolder(place)
    run.lock()
    yield run
    run.unlock()


def attempt(run: RunFolder, shard: int, content: bytes = b"rows") -> dict[str, Any]:
    name = run.new_attempt(shard, 1)
    tables = ("images", "latents")
    with run.storage.stage(staging(name)) as folder:
        for table in tables:
            (folder / f"{table}.parquet").write_bytes(content)
    files = {table: {"bytes": len(content)} for table in tables}
    return {"attempt": name, "files": files, "ok": 2, "quarantined": 1}


def manifest(run: RunFolder, shard: int) -> dict[str, Any]:
    return json.loads(run.storage.read(f"_state/shards/{shard:05d}.json") or b"")


def files(storage: Storage) -> dict[str, bytes | None]:
    return {key: storage.read(key) for key in storage.sizes() if key.endswith(".parquet")}


DONE = {"images/part-00004.parquet": b"rows", "latents/part-00004.parquet": b"rows"}


def test_commit_publishes_and_leaves_no_staging(run: RunFolder) -> None:
    run.commit(4, attempt(run, 4), planned=3)
    assert files(run.storage) == DONE
    assert list(run.committed()) == [4]
    assert run.storage.sizes("_staging") == {}


def test_the_second_attempt_at_a_shard_loses(run: RunFolder) -> None:
    first, second = attempt(run, 4), attempt(run, 4, b"other")
    run.commit(4, first, planned=3)
    run.commit(4, second, planned=3)
    assert files(run.storage) == DONE
    assert manifest(run, 4)["attempt"] == first["attempt"]


def test_a_missing_image_is_not_committed(run: RunFolder) -> None:
    with pytest.raises(ValueError, match="do not add up to the 4 planned"):
        run.commit(4, attempt(run, 4), planned=4)
    assert run.committed() == {}


def test_files_that_the_driver_does_not_see_are_not_committed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.lock()
    receipt = attempt(run, 4)
    run.storage.delete(f"{staging(receipt['attempt'])}/latents.parquet")
    with pytest.raises(StorageError, match=r"latents\.parquet.*shard 4.*all machines share"):
        run.commit(4, receipt, planned=3)
    assert run.committed() == {}
    assert files(run.storage).keys() <= {f"{staging(receipt['attempt'])}/images.parquet"}
    run.unlock()


def test_a_receipt_that_does_not_add_up_fails_the_run(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dhr_batch.pipeline import members
    from dhr_batch.pipeline.blame import Blame
    from dhr_batch.pipeline.driver import Driver, RunFailed
    from dhr_batch.pipeline.plan import Shard
    from dhr_batch.pipeline.sources import Item
    from dhr_batch.pipeline.tasks import Task

    for name in ("listen", "hear"):
        monkeypatch.setattr(members, name, lambda *_, **__: None)
    driver: Any = Driver.__new__(Driver)
    driver.run, driver.progress, driver._blame, driver._idle = run, None, Blame(), []
    driver._members = {0: members.Member(handle=None)}
    driver._assign = lambda: None
    shard = Shard(4, (Item("a.png", "", "a.png", 1),))
    with pytest.raises(RunFailed, match="do not add up to the 1 planned"):
        driver._worked(Task(0, "shard", shard), shard, {"receipt": attempt(run, 4)})
    assert run.committed() == {}


def test_without_the_lease_nothing_is_committed(place: str) -> None:
    run = RunFolder(place)
    with pytest.raises(LeaseLost):
        run.commit(4, attempt(run, 4), planned=3)
    assert run.committed() == {}


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_kill_after_the_commit_point_rolls_forward(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    receipt = attempt(run, 4)
    attempt(run, 5)
    monkeypatch.setattr(run, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.commit(4, receipt, planned=3)
    for table in list(receipt["files"])[:moved]:
        staged = f"{staging(receipt['attempt'])}/{table}.parquet"
        assert run.storage.publish(staged, f"{table}/part-00004.parquet")
    monkeypatch.undo()
    assert list(run.recover()) == [4]
    assert files(run.storage) == DONE
    assert run.storage.sizes("_staging") == {}


def test_a_kill_before_the_commit_point_leaves_nothing(run: RunFolder) -> None:
    attempt(run, 4)
    assert run.recover() == {}
    assert files(run.storage) == {}


def test_a_manifest_without_its_files_is_void(run: RunFolder) -> None:
    """What a driver leaves that was frozen while another one took over."""
    late = attempt(run, 4, b"late")
    run.clear_staging()
    run.storage.create("_state/shards/00004.json", json.dumps(late).encode())
    run.commit(4, attempt(run, 4), planned=3)
    assert files(run.storage) == DONE
    run.storage.delete("latents/part-00004.parquet")
    run.storage.replace("images/part-00004.parquet", b"torn")
    assert run.recover() == {}
    assert run.committed() == {}
    run.commit(4, attempt(run, 4), planned=3)
    assert files(run.storage) == DONE


def test_a_late_manifest_with_its_files_finishes_the_shard(run: RunFolder) -> None:
    late = attempt(run, 4)
    run.storage.create("_state/shards/00004.json", json.dumps(late).encode())
    run.commit(4, attempt(run, 4, b"other"), planned=3)
    assert files(run.storage) == DONE
    assert manifest(run, 4)["attempt"] == late["attempt"]


def test_a_shard_that_was_given_back_keeps_its_rows_until_it_is_made_again(run: RunFolder) -> None:
    plan = {"schema": 2, "shards": [["a"], ["b", "c"]], "contents": [[1], [2, 3]]}
    run.write_plan(plan)
    run.commit(1, attempt(run, 1), planned=3)
    run.reopen({1: {"c"}})
    assert run.plan() == plan | {"contents": [[1], [2, None]]}
    assert (run.committed(), run.recover()) == ({}, {})
    names = ("images/part-00001.parquet", "latents/part-00001.parquet")
    assert files(run.storage) == dict.fromkeys(names, b"rows")
    run.commit(1, attempt(run, 1, b"new rows"), planned=3)
    assert files(run.storage) == dict.fromkeys(names, b"new rows")


def test_only_the_holder_gives_shards_back(place: str) -> None:
    run = RunFolder(place)
    run.write_plan({"schema": 2, "shards": [["a"]], "contents": [[1]]})
    with pytest.raises(LeaseLost):
        run.reopen({0: {"a"}})
    assert run.plan() == {"schema": 2, "shards": [["a"]], "contents": [[1]]}


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "is empty"), (b"{", "is damaged"), (b"[]", "is damaged")]
)
def test_a_damaged_plan_is_refused(run: RunFolder, content: bytes, problem: str) -> None:
    run.storage.replace("plan.json", content)
    with pytest.raises(Refused, match=problem):
        run.plan()


def test_a_damaged_manifest_is_named(run: RunFolder) -> None:
    run.storage.replace("_state/shards/00004.json", b"{")
    with pytest.raises(StorageError, match=r"00004\.json is damaged.*delete it"):
        run.committed()


def test_the_plan_is_written_once(run: RunFolder) -> None:
    assert run.plan() is None
    run.write_plan({"schema": 2, "shards": []})
    assert run.plan() == {"schema": 2, "shards": []}
    with pytest.raises(Refused, match="start again"):
        run.write_plan({"schema": 2, "shards": [[]]})


_OTHER = """
import sys
from dhr_batch.pipeline.commit import RunFolder
run = RunFolder(sys.argv[1])
run.lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_driver_is_refused_until_the_first_one_is_gone(place: str) -> None:
    command = [sys.executable, "-c", _OTHER, place]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(Refused, match=rf"in use by process {other.pid} on "):
            RunFolder(place).lock()
        other.kill()
        other.wait()
        # Long before the lease lapses: the process is gone, and that can be seen from here.
        run = RunFolder(place)
        run.lock()
        run.unlock()


def test_a_lease_that_was_given_back_is_free(place: str) -> None:
    for _ in range(2):
        run = RunFolder(place)
        run.lock()
        run.unlock()


def test_a_deleted_lock_file_is_a_lost_lease(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.lock()
    (tmp_path / lease.KEY).unlink()
    with pytest.raises(LeaseLost, match="deleted or replaced"):
        run.commit(4, attempt(run, 4), planned=3)
    run.unlock()


def _foreign(bucket: str, timeout: float) -> Storage:
    """A run held by a process of a machine that is not this one."""
    storage = connect(f"{bucket}/run")
    record = {"host": "elsewhere", "pid": 7, "boot": "x", "token": "t", "timeout": timeout}
    assert storage.create(lease.KEY, json.dumps(record).encode())
    return storage


def test_a_silent_driver_elsewhere_is_replaced_after_the_timeout(bucket: str) -> None:
    storage = _foreign(bucket, timeout=1)
    with pytest.raises(Refused, match=r"process 7 on elsewhere.*lapses in [12] s"):
        RunFolder(storage).lock()
    run = RunFolder(storage)
    take(run)
    run.unlock()


def is_lost(run: RunFolder) -> bool:
    try:
        run.check()
    except LeaseLost:
        return True
    return False


def take(run: RunFolder) -> None:
    """Wait until the run is free."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return run.lock()
        except Refused:
            assert time.monotonic() < deadline
            time.sleep(0.3)


def test_a_driver_that_was_replaced_stops(bucket: str) -> None:
    run = RunFolder(f"{bucket}/run", lease_timeout=1.2)
    run.lock()
    receipt = attempt(run, 4)
    # Whoever takes over writes the lease; the heartbeat notices.
    run.storage.replace(lease.KEY, json.dumps({"host": "elsewhere", "pid": 7}).encode())
    deadline = time.monotonic() + 60
    while not is_lost(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(LeaseLost, match="process 7 on elsewhere took over"):
        run.commit(4, receipt, planned=3)
    assert run.committed() == {}
    run.unlock()
    assert b"elsewhere" in (run.storage.read(lease.KEY) or b"")


def test_a_heartbeat_keeps_the_lease(bucket: str) -> None:
    run = RunFolder(f"{bucket}/run", lease_timeout=2)
    run.lock()
    # A second driver that would replace a silent one after 3 s.
    for _ in range(8):
        with pytest.raises(Refused, match="in use by process"):
            RunFolder(run.storage).lock()
        time.sleep(0.5)
    run.check()
    run.unlock()


def test_a_driver_that_was_frozen_stops(bucket: str) -> None:
    """Its clock went on: it may have been replaced, whatever its heartbeat did meanwhile."""
    script = _OTHER.replace("sys.stdin.read()", "sys.stdin.readline(); run.check()").replace(
        "RunFolder(sys.argv[1])", "RunFolder(sys.argv[1], lease_timeout=2)"
    )
    command, pipe = [sys.executable, "-c", script, f"{bucket}/run"], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        os.kill(other.pid, signal.SIGSTOP)
        run = RunFolder(f"{bucket}/run", lease_timeout=2)
        take(run)
        os.kill(other.pid, signal.SIGCONT)
        _, said = other.communicate("\n", timeout=60)
    assert other.returncode == 1
    assert "LeaseLost" in said
    run.check()
    run.unlock()


@pytest.fixture
def frozen(bucket: str) -> Iterator[tuple[RunFolder, RunFolder]]:
    """A driver that does not know yet that it was replaced, and the one that did."""
    old, new = RunFolder(f"{bucket}/run"), RunFolder(f"{bucket}/run")
    old.lock()
    old.write_plan(PLAN)
    old.storage.replace(lease.KEY, b'{"released": true}')
    new.lock()
    yield old, new
    new.unlock()


PLAN: dict[str, Any] = {"schema": 2, "shards": [["a", "b", "c"]], "contents": [[1, 2, 3]]}
LONGER = PLAN | {"shards": [*PLAN["shards"], ["d"]], "contents": [*PLAN["contents"], [4]]}


def test_a_frozen_driver_does_not_replace_the_plan(frozen: tuple[RunFolder, RunFolder]) -> None:
    old, new = frozen
    assert old.plan() == new.plan() == PLAN
    new.replace_plan(LONGER)
    with pytest.raises(LeaseLost, match=r"plan\.json was changed by another driver"):
        old.replace_plan(PLAN | {"dataset": "other"})
    assert new.plan() == LONGER
    new.replace_plan(PLAN)
    assert new.plan() == PLAN


def test_a_frozen_driver_does_not_take_back_a_manifest(
    frozen: tuple[RunFolder, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = frozen
    late = attempt(old, 0, b"late")
    new.clear_staging()
    old.storage.create("_state/shards/00000.json", json.dumps(late).encode())
    get = old.storage.get

    def freezing(key: str) -> Any:
        """The old driver has read the void manifest; before it acts, the new one goes on."""
        there = get(key)
        monkeypatch.undo()
        new.recover()
        new.commit(0, attempt(new, 0), planned=3)
        return there

    monkeypatch.setattr(old, "clear_staging", lambda: None)
    publish = old.publish

    def void(shard: int, manifest: dict[str, Any]) -> bool:
        assert not publish(shard, manifest)
        monkeypatch.setattr(old.storage, "get", freezing)
        return False

    monkeypatch.setattr(old, "publish", void)
    with pytest.raises(LeaseLost, match=r"00000\.json was changed by another driver"):
        old.recover()
    assert list(new.committed()) == [0]
    assert files(new.storage).keys() == {"images/part-00000.parquet", "latents/part-00000.parquet"}


def test_a_frozen_driver_gives_no_shard_back(
    frozen: tuple[RunFolder, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = frozen
    new.commit(0, attempt(new, 0), planned=3)
    get = old.storage.get

    def freezing(key: str) -> Any:
        there = get(key)
        if key == "_state/shards/00000.json":
            monkeypatch.undo()
            new.reopen({0: {"a"}})
            new.commit(0, attempt(new, 0, b"new rows"), planned=3)
        return there

    monkeypatch.setattr(old.storage, "get", freezing)
    with pytest.raises(LeaseLost, match=r"00000\.json was changed by another driver"):
        old.reopen({0: {"b"}})
    assert list(new.committed()) == [0]
    assert set(files(new.storage).values()) == {b"new rows"}


def test_a_manifest_that_was_taken_back_is_none(run: RunFolder) -> None:
    run.write_plan(PLAN)
    run.commit(0, attempt(run, 0), planned=3)
    run.reopen({0: {"a"}})
    again = RunFolder(run.storage)
    assert again.committed() == {}
    found = verify(run.storage)
    assert (found.problems, found.verified, found.shards) == ([], 0, 1)
    assert "to be made again: shards 0" in found.notes[1]


def test_a_key_changes_only_from_the_version_that_was_seen(place: str) -> None:
    storage = connect(place)
    first = storage.swap("_state/a", b"1", None)
    assert first is not None
    assert storage.swap("_state/a", b"2", None) is None
    second = storage.swap("_state/a", b"22", first)
    assert second is not None
    assert storage.swap("_state/a", b"3", first) is None
    assert not storage.withdraw("_state/a", first)
    there = storage.get("_state/a")
    assert there is not None
    assert (there.content, there.version) == (b"22", second)
    assert storage.withdraw("_state/a", second)
    assert not storage.read("_state/a")


def test_tables_are_copied_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(f"{bucket}/run")
    run.lock()
    publish, all_here = run.storage.publish, threading.Barrier(2)

    def waiting(staged: str, final: str) -> bool:
        all_here.wait(timeout=60)
        return publish(staged, final)

    monkeypatch.setattr(run.storage, "publish", waiting)
    run.commit(4, attempt(run, 4), planned=3)
    assert files(run.storage) == DONE
    run.unlock()


def test_a_copy_that_fails_is_made_by_the_next_start(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(f"{bucket}/run")
    run.lock()
    publish = run.storage.publish

    def failing(staged: str, final: str) -> bool:
        if final.startswith("images"):
            raise StorageError("the store is away")
        return publish(staged, final)

    monkeypatch.setattr(run.storage, "publish", failing)
    with pytest.raises(StorageError, match="the store is away"):
        run.commit(4, attempt(run, 4), planned=3)
    assert set(files(run.storage).values()) == {b"rows"}
    monkeypatch.undo()
    assert list(run.recover()) == [4]
    assert files(run.storage) == DONE
    run.unlock()
