"""The verbs of storages: the same in a folder and in an object store."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.pipeline.storage.base import Storage, in_order
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.local import LocalStorage


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return connect(tmp_path / "a run")
    return connect(request.getfixturevalue("bucket") + "/a/run")


def test_create_never_overwrites(storage: Storage) -> None:
    assert storage.create("_state/a.json", b"1")
    assert not storage.create("_state/a.json", b"2")
    assert storage.read("_state/a.json") == b"1"
    assert storage.sizes() == {"_state/a.json": 1}


def test_one_of_eight_racing_writers_wins(storage: Storage) -> None:
    for round_ in range(5):
        barrier, won = threading.Barrier(8), []

        def race(number: int, key: str = f"race{round_}", barrier=barrier, won=won) -> None:
            barrier.wait()
            if storage.create(key, b"%d" % number):
                won.append(number)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.read(f"race{round_}") == b"%d" % won[0]


def test_replace_and_read(storage: Storage) -> None:
    assert storage.read("report/index.html") is None
    storage.replace("report/index.html", b"old")
    storage.replace("report/index.html", b"new one")
    assert storage.read("report/index.html") == b"new one"
    assert storage.sizes("report") == {"report/index.html": 7}


def test_staged_files_are_published_once(storage: Storage) -> None:
    with storage.stage("_staging/x") as folder:
        (folder / "images.parquet").write_bytes(b"rows")
    assert storage.sizes() == {"_staging/x/images.parquet": 4}
    assert storage.publish("_staging/x/images.parquet", "images/part-00000.parquet")
    storage.delete("_staging/x")
    assert not storage.publish("_staging/x/images.parquet", "images/part-00000.parquet")
    assert storage.sizes() == {"images/part-00000.parquet": 4}
    assert in_order(storage.sizes("images")) == ["images/part-00000.parquet"]
    assert storage.tables() == ["images"]


def test_a_failed_stage_leaves_no_scratch(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("dhr_batch.pipeline.crash.at", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError), storage.stage("_staging/x") as folder:
        (folder / "images.parquet").write_bytes(b"rows")
    assert list((tmp_path / "scratch").glob("*/*")) == []
    storage.delete("_staging")
    assert storage.sizes() == {}


def test_a_full_disk_is_said(storage: Storage) -> None:
    with (
        pytest.raises(StorageError, match=r"no space left .* finished shards are kept"),
        storage.stage("_staging/x"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert storage.sizes() == {}


@pytest.mark.parametrize("write", ["create", "replace"])
def test_a_full_disk_is_said_of_a_small_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    storage = LocalStorage(tmp_path)
    monkeypatch.setattr("dhr_batch.pipeline.storage.local.os.fsync", full)
    with pytest.raises(StorageError, match=r"no space left .* finished shards are kept"):
        getattr(storage, write)("_state/shards/00000.json", b"{}")
    assert list(tmp_path.rglob("*.json*")) == []


def test_delete_takes_a_prefix_by_whole_parts(storage: Storage) -> None:
    for key in ("a/1", "a/b/2", "ab/3"):
        storage.replace(key, b"x")
    storage.delete("a")
    storage.delete("a")
    assert list(storage.sizes()) == ["ab/3"]
    storage.delete("ab/3")
    assert storage.sizes() == {}


def test_tables_hold_finished_files_only(storage: Storage) -> None:
    names = ("part-00001.parquet", "part-00000.parquet", "part-1.parquet", ".part-00002.parquet.x")
    for name in names:
        storage.replace(f"images/{name}", b"x")
    storage.replace("_staging/x/part-00000.parquet", b"x")
    parts = ["images/part-00000.parquet", "images/part-00001.parquet"]
    assert in_order(storage.sizes("images")) == parts
    assert storage.tables() == ["images"]


def test_more_than_a_hundred_thousand_shards_are_found_in_order(storage: Storage) -> None:
    parts = [f"images/part-{shard:05d}.parquet" for shard in (99_998, 99_999, 100_000, 312_499)]
    for part in reversed(parts):
        storage.replace(part, b"x")
    assert in_order(storage.sizes("images")) == parts
    assert storage.tables() == ["images"]


def test_parquet_is_read_by_key(storage: Storage) -> None:
    with storage.stage("_staging/x") as folder:
        pq.write_table(pa.table({"a": [1, 2, 3]}), folder / "images.parquet")
    storage.publish("_staging/x/images.parquet", "images/part-00000.parquet")
    data = ds.dataset(in_order(storage.sizes("images")), format="parquet", filesystem=storage.files)
    assert data.to_table(filter=ds.field("a") > 1)["a"].to_pylist() == [2, 3]


def test_large_files_are_uploaded_in_parts(bucket: str) -> None:
    storage, content = connect(f"{bucket}/run"), bytes(range(256)) * 50_000
    with storage.stage("_staging/x") as folder:
        (folder / "deltas.parquet").write_bytes(content)
    storage.publish("_staging/x/deltas.parquet", "deltas/part-00000.parquet")
    assert storage.read("deltas/part-00000.parquet") == content


def test_free_space(tmp_path: Path, bucket: str) -> None:
    assert (connect(tmp_path).free() or 0) > 0
    assert connect(bucket).free() is None


def test_places_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Refused, match="is a file"):
        connect(tmp_path / "file")
    with pytest.raises(Refused, match="ftp://x/y: it is neither a folder nor the URL"):
        connect("ftp://x/y")
    assert isinstance(connect(f"file://{tmp_path}"), LocalStorage)
    monkeypatch.setenv("DHR_BATCH_STORAGE_PATIENCE", "long")
    with pytest.raises(Refused, match="DHR_BATCH_STORAGE_PATIENCE=long"):
        connect("s3://bucket/run")


def test_an_absent_bucket_is_said_at_once(s3: str) -> None:
    storage = connect("s3://there-is-no-such-bucket/run")
    for verb in (lambda: storage.create("a", b""), lambda: storage.sizes("b")):
        with pytest.raises(StorageError, match=r"s3://there-is-no-such-bucket/run: cannot .* 404"):
            verb()


def test_a_name_with_nul_is_refused() -> None:
    with pytest.raises(Refused, match="the character NUL"):
        connect("a\0b")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "plan.json")
    with pytest.raises(OSError, match="pipe or a device"):
        connect(tmp_path).get("plan.json")


@pytest.mark.parametrize("key", ["../mine.txt", "a/../../mine.txt", "{outside}/mine.txt"])
def test_a_forged_record_reaches_no_file_outside(tmp_path: Path, key: str) -> None:
    storage, mine = connect(tmp_path / "run"), tmp_path / "mine.txt"
    mine.write_text("mine")
    storage.create("own", b"1")
    forged = key.format(outside=tmp_path)
    for verb in (
        lambda: storage.remove([forged]),
        lambda: storage.delete(forged),
        lambda: storage.publish(forged, "a"),
        lambda: storage.publish("own", forged),
        lambda: storage.replace(forged, b""),
        lambda: storage.swap(forged, b"", None),
        lambda: storage.get(forged),
    ):
        with pytest.raises(StorageError, match="outside of the place"):
            verb()
    assert mine.read_text() == "mine"
    assert storage.sizes() == {"own": 1}
