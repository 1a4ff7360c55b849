"""One driver at a time: leases, and drivers that do not know that they were replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.runs import lease
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.lease import LeaseLost
from dhr_batch.pipeline.runs.records.manifests import Manifest, dumps
from dhr_batch.pipeline.runs.reopening import reopen
from dhr_batch.pipeline.storage.base import Storage
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.stages.record import required
from dhr_batch.tests.pipeline.attempts import PLAN, attempt, files

_OTHER = """
import sys
from dhr_batch.pipeline.runs.folder import RunFolder
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


def test_a_pipe_in_place_of_the_lock_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "_state").mkdir()
    os.mkfifo(tmp_path / "_state" / "lease")
    run = RunFolder(tmp_path)
    for verb in (run.lock, run.holder):
        with pytest.raises(OSError, match="pipe or a device"):
            verb()


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
    with pytest.raises(Refused, match=r"process 7 on elsewhere.*lease expires in [12] s"):
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


LONGER = replace(PLAN, shards=[*PLAN.shards, ["d"]], contents=[*required(PLAN.contents), [4]])


def test_a_frozen_driver_does_not_replace_the_plan(frozen: tuple[RunFolder, RunFolder]) -> None:
    old, new = frozen
    assert old.plan() == new.plan() == PLAN
    new.replace_plan(LONGER)
    with pytest.raises(LeaseLost, match=r"plan\.json: another driver has changed it"):
        old.replace_plan(replace(PLAN, dataset="other"))
    assert new.plan() == LONGER
    new.replace_plan(PLAN)
    assert new.plan() == PLAN


def test_a_frozen_driver_does_not_take_back_a_manifest(
    frozen: tuple[RunFolder, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = frozen
    late = replace(attempt(old, 0, b"late"), run=old.identity() or "", shard=0)
    new.clear_staging()
    old.storage.create("_state/shards/00000.json", dumps(late))
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

    def void(shard: int, manifest: Manifest) -> bool:
        assert not publish(shard, manifest)
        monkeypatch.setattr(old.storage, "get", freezing)
        return False

    monkeypatch.setattr(old, "publish", void)
    with pytest.raises(LeaseLost, match=r"00000\.json: another driver has changed it"):
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
            reopen(new, {0: {"a"}})
            new.commit(0, attempt(new, 0, b"new rows"), planned=3)
        return there

    monkeypatch.setattr(old.storage, "get", freezing)
    with pytest.raises(LeaseLost, match=r"00000\.json: another driver has changed it"):
        reopen(old, {0: {"b"}})
    assert list(new.committed()) == [0]
    assert set(files(new.storage).values()) == {b"new rows"}
