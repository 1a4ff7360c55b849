"""Attempts become part of a run once, completely, or not at all; on disks and in object stores."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.lease import LeaseLost
from dhr_batch.pipeline.runs.names import staging
from dhr_batch.pipeline.runs.records.manifests import dumps
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.runs.reopening import reopen
from dhr_batch.pipeline.runs.verify import verify
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.tests.pipeline.attempts import PLAN, attempt, files


@pytest.fixture
def run(place: str) -> Iterator[RunFolder]:
    run = RunFolder(place)
    run.lock()
    yield run
    run.unlock()


def manifest(run: RunFolder, shard: int) -> dict[str, Any]:
    return json.loads(run.storage.read(f"_state/shards/{shard:05d}.json") or b"")


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
    assert manifest(run, 4)["attempt"] == first.attempt


def test_a_missing_image_is_not_committed(run: RunFolder) -> None:
    with pytest.raises(ValueError, match="do not add up to the 4 planned"):
        run.commit(4, attempt(run, 4), planned=4)
    assert run.committed() == {}


def test_files_that_the_driver_does_not_see_are_not_committed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.lock()
    receipt = attempt(run, 4)
    run.storage.delete(f"{staging(receipt.attempt)}/latents.parquet")
    with pytest.raises(StorageError, match=r"latents\.parquet.*shard 4.*all machines share"):
        run.commit(4, receipt, planned=3)
    assert run.committed() == {}
    assert files(run.storage).keys() <= {f"{staging(receipt.attempt)}/images.parquet"}
    run.unlock()


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
    for table in list(receipt.files)[:moved]:
        staged = f"{staging(receipt.attempt)}/{table}.parquet"
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
    run.storage.create("_state/shards/00004.json", dumps(late))
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
    run.storage.create("_state/shards/00004.json", dumps(late))
    run.commit(4, attempt(run, 4, b"other"), planned=3)
    assert files(run.storage) == DONE
    assert manifest(run, 4)["attempt"] == late.attempt


def test_a_late_manifest_of_a_deleted_run_is_named(run: RunFolder) -> None:
    run.write_plan(StoredPlan(schema=2, shards=[], contents=[]))
    late = replace(attempt(run, 4), run="0" * 32, shard=4)
    run.storage.create("_state/shards/00004.json", dumps(late))
    with pytest.raises(StorageError, match=r"00004\.json.*another run than plan\.json"):
        run.commit(4, attempt(run, 4, b"other"), planned=3)


def test_a_shard_that_was_given_back_keeps_its_rows_until_it_is_made_again(run: RunFolder) -> None:
    plan = StoredPlan(schema=2, shards=[["a"], ["b", "c"]], contents=[[1], [2, 3]])
    run.write_plan(plan)
    run.commit(1, attempt(run, 1), planned=3)
    reopen(run, {1: {"c"}})
    assert run.plan() == replace(plan, contents=[[1], [2, None]])
    assert (run.committed(), run.recover()) == ({}, {})
    names = ("images/part-00001.parquet", "latents/part-00001.parquet")
    assert files(run.storage) == dict.fromkeys(names, b"rows")
    run.commit(1, attempt(run, 1, b"new rows"), planned=3)
    assert files(run.storage) == dict.fromkeys(names, b"new rows")


def test_only_the_holder_gives_shards_back(place: str) -> None:
    run = RunFolder(place)
    plan = StoredPlan(schema=2, shards=[["a"]], contents=[[1]])
    run.write_plan(plan)
    with pytest.raises(LeaseLost):
        reopen(run, {0: {"a"}})
    assert run.plan() == plan


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "is empty"), (b"{", "is damaged"), (b"[]", "is damaged")]
)
def test_a_damaged_plan_is_refused(run: RunFolder, content: bytes, problem: str) -> None:
    run.storage.replace("plan.json", content)
    with pytest.raises(Refused, match=problem):
        run.plan()


def test_a_damaged_manifest_is_named(run: RunFolder) -> None:
    run.storage.replace("_state/shards/00004.json", b"{")
    with pytest.raises(StorageError, match=r"00004\.json: it is damaged.*delete it"):
        run.committed()


def test_the_plan_is_written_once(run: RunFolder) -> None:
    assert run.plan() is None
    plan = StoredPlan(schema=2, shards=[])
    run.write_plan(plan)
    assert run.plan() == plan
    with pytest.raises(Refused, match="start again"):
        run.write_plan(replace(plan, shards=[[]]))


def test_a_manifest_that_was_taken_back_is_none(run: RunFolder) -> None:
    run.write_plan(PLAN)
    run.commit(0, attempt(run, 0), planned=3)
    reopen(run, {0: {"a"}})
    again = RunFolder(run.storage)
    assert again.committed() == {}
    found = verify(run.storage)
    assert (found.problems, found.verified, found.shards) == ([], 0, 1)
    assert "to be computed again: shards 0" in found.notes[1]


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
