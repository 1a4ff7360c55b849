"""An object store that fails at times is survived; one that fails for good ends the run well."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.names import staging
from dhr_batch.pipeline.runs.records.manifests import FileFacts, Manifest
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.objects import ObjectStorage

slow = pytest.mark.slow


def commit(run: RunFolder, shard: int) -> None:
    name = run.new_attempt(shard, 1)
    with run.storage.stage(staging(name)) as folder:
        (folder / "images.parquet").write_bytes(b"rows of %d" % shard)
    size = len(b"rows of %d" % shard)
    receipt = Manifest(name, {"images": FileFacts(bytes=size)}, ok=1)
    run.commit(shard, receipt, planned=1)


def test_shards_are_committed_although_calls_fail(
    bucket: str, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHR_BATCH_STORAGE_PATIENCE", "20")
    faults.rate, faults.stall, faults.injected["timeout"] = 0.3, 0.0, 2
    run = RunFolder(f"{bucket}/run", lease_timeout=60)
    run.lock()
    run.write_plan(StoredPlan())
    for shard in range(12):
        commit(run, shard)
    assert list(run.recover()) == list(range(12))
    run.unlock()
    assert run.storage.sizes("_staging") == {}
    assert len(run.storage.sizes("images")) == 12
    faults.rate = 0
    for shard in range(12):
        assert run.storage.read(f"images/part-{shard:05d}.parquet") == b"rows of %d" % shard
    assert faults.injected["412 after success"] + faults.injected["409"] > 0, faults.injected
    assert faults.injected["lost answer"] > 0, faults.injected


@pytest.mark.parametrize("fault", ["412 after success", "409", "lost answer", "500 after success"])
def test_a_create_whose_answer_was_lost_is_ours(bucket: str, faults: Any, fault: str) -> None:
    storage = connect(f"{bucket}/run")
    pending = [fault]
    faults.draw = lambda conditional: pending.pop() if pending and conditional else None
    assert storage.create("_state/a", b"mine")
    assert not storage.create("_state/a", b"another's")
    assert pending == []


def test_a_store_that_never_answers_is_given_up(
    bucket: str, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHR_BATCH_STORAGE_PATIENCE", "1")
    run = RunFolder(f"{bucket}/run")
    run.lock()
    commit(run, 0)
    faults.rate, faults.stall = 1.0, 0.0
    with pytest.raises(StorageError, match=r"tried \d+ times: .*the same command goes on"):
        commit(run, 1)
    run.unlock()
    faults.rate = 0.0
    # The process that holds the lease is alive, and it is this one.
    storage = connect(f"{bucket}/run")
    record = json.loads(storage.read("_state/lease") or b"")
    storage.replace("_state/lease", json.dumps(record | {"released": True}).encode())
    again = RunFolder(storage)
    again.lock()
    assert list(again.recover()) == [0]
    commit(again, 1)
    assert list(again.committed()) == [0, 1]
    again.unlock()


@pytest.mark.parametrize(
    ("silent", "size"),
    [
        ("_staging/", 1000),
        pytest.param("_staging/", 12 * 2**20, marks=slow),
        pytest.param("partNumber=2", 12 * 2**20, marks=slow),
    ],
)
def test_an_upload_that_nobody_takes_or_answers_is_given_up(
    bucket: str, faults: Any, silent: str, size: int
) -> None:
    """The client's limit for a request ends it: no call hangs much longer than it is repeated."""
    storage = ObjectStorage(f"{bucket}/run", patience=1)
    faults.silent = silent
    began = time.monotonic()
    refused = pytest.raises(StorageError, match="cannot upload _staging/x/images")
    with refused, storage.stage("_staging/x") as folder:
        (folder / "images.parquet").write_bytes(bytes(size))
    seconds = time.monotonic() - began
    print(f"\ngiven up after {seconds:.1f} s")
    assert faults.injected["silence"] > 0
    assert seconds < 60
    faults.silent = ""
    assert connect(f"{bucket}/run").sizes() == {}


@pytest.fixture(params=[3, None])
def options(request: pytest.FixtureRequest) -> dict[str, int]:
    """How long a run waits for its store: shortly, then as long as it does by itself."""
    return {} if request.param is None else {"DHR_BATCH_STORAGE_PATIENCE": request.param}


def stopped(process: Any, what: str) -> str:
    """What a run says that gives its store up, soon after `what`, and can go on later."""
    began = time.monotonic()
    _, said = process.communicate(timeout=300)
    seconds = time.monotonic() - began
    print(f"\nstopped {seconds:.0f} s after {what}")
    assert process.returncode == 1, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    assert seconds < 120
    return str(said)


@slow
def test_a_run_whose_uploads_hang_stops_and_goes_on_later(
    bare_runs: Any,
    bare_reference: Any,
    same: Callable[..., None],
    bucket: str,
    faults: Any,
    options: dict[str, int],
) -> None:
    """Everything else is answered: the driver has its lease, and hears from its workers."""
    place = f"{bucket}/run"
    faults.silent = "_staging/"
    with bare_runs.start(place, **options) as process:
        while not faults.injected["silence"]:
            assert process.poll() is None
            time.sleep(0.1)
        said = stopped(process, "the first upload")
    assert "cannot upload _staging/" in said
    faults.silent = ""
    code, said = bare_runs.run(place)
    assert code == 0, said
    same(place, bare_reference)


@slow
def test_a_run_survives_ten_percent(
    runs: Any, reference: Any, same: Callable[..., None], bucket: str, faults: Any
) -> None:
    faults.rate = 0.1
    code, said = runs.run(f"{bucket}/run", DHR_BATCH_STORAGE_PATIENCE=30)
    print(f"\ninjected: {dict(faults.injected)}")
    assert code == 0, said
    assert faults.injected.total() >= 5
    faults.rate = 0
    same(f"{bucket}/run", reference)


@slow
def test_a_run_without_its_store_stops_and_goes_on_later(
    runs: Any,
    reference: Any,
    same: Callable[..., None],
    bucket: str,
    faults: Any,
    options: dict[str, int],
) -> None:
    place = f"{bucket}/run"
    with runs.start(place, **options) as process:
        while connect(place).read("plan.json") is None:
            assert process.poll() is None
            time.sleep(0.2)
        faults.rate = 1.0
        stopped(process, "the store did")
    faults.rate = 0.0
    code, said = runs.run(place)
    assert code == 0, said
    same(place, reference)
