"""Images in object stores and on disks that are away, or were: ids, content, errors."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.datasets import celebahq, listing, named
from dhr_batch.pipeline.datasets.items import DatasetError, Unreadable
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage import locations
from dhr_batch.tests.pipeline.listed import (
    FILES,
    OTHERS,
    content,
    listed,
    pack,
    unpack,
    write_table,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def bucket(
    s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: Any
) -> Iterator[Callable[..., str]]:
    """Puts files into a bucket of the test's own and returns its URL."""
    import boto3

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    locations._store.cache_clear()
    client = boto3.client("s3")
    name = f"test-{abs(hash(request.node.nodeid))}"
    client.create_bucket(Bucket=name)

    def put(files: dict[str, bytes], prefix: str) -> str:
        for key, data in files.items():
            client.put_object(Bucket=name, Key=f"{prefix}/{key}", Body=data)
        return f"s3://{name}/{prefix}"

    yield put
    locations._store.cache_clear()


def test_object_store_has_the_ids_and_content_of_the_folder(bucket: Callable[..., str]) -> None:
    url = bucket(FILES | OTHERS, "faces/v1")
    bucket({"x.jpg": b"another prefix"}, "faces/v10")
    for place in (url, f"{url}/"):
        items = listed(place)
        assert [item.image_id for item in items] == list(FILES)
        assert content(items) == FILES
        assert [item.size for item in items] == [len(data) for data in FILES.values()]
    assert named.find(url).name == "v1"
    etags = [item.etag for item in items]
    bucket({"sub/10.png": b"SECOND"}, "faces/v1")
    changed = [item.etag for item in listed(url)]
    assert [one == other for one, other in zip(etags, changed, strict=True)] == [
        True,
        False,
        True,
        True,
    ]


def test_archives_in_an_object_store(bucket: Callable[..., str], tmp_path: Path) -> None:
    big = {"a.jpg": os.urandom(700_000), "b.jpg": os.urandom(10), "c.png": os.urandom(600_000)}
    tar = pack(tmp_path / "t.tar", big).read_bytes()
    rows = [{"bytes": data, "path": name} for name, data in big.items()]
    table = write_table(tmp_path / "t.parquet", rows).read_bytes()
    url = bucket({"tars/1.tar": tar, "tables/1.parquet": table}, "set")
    for place in ("tars/1.tar", "tars", "tables/1.parquet", "tables"):
        assert content(listed(f"{url}/{place}")) == big, place


def test_missing_objects_are_told_from_a_missing_bucket(bucket: Callable[..., str]) -> None:
    url = bucket({"a.jpg": b"1"}, "set")
    (item,) = listed(url)
    with pytest.raises(Unreadable, match="no such object"):
        listing.read_bytes(item._replace(name="b.jpg"))
    with pytest.raises(StorageError, match="no-such-bucket"):
        listed("s3://no-such-bucket/set")
    gone = item._replace(place="s3://no-such-bucket/set/")
    for broken in (gone, gone._replace(at=512)):
        with pytest.raises(StorageError, match=r"no-such-bucket.* 404"):
            listing.read_bytes(broken)
    with pytest.raises(StorageError, match=r"no-such-bucket.* 404"):
        locations.describe(gone.location)
    with pytest.raises(DatasetError, match=r"no images in s3://.*/other"):
        listed(url.replace("/set", "/other"))


def test_a_store_that_does_not_answer_is_nobodys_quarantine(
    bucket: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = listed(bucket({"a.jpg": b"1"}, "set"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DHR_BATCH_STORAGE_PATIENCE", "0.5")
    locations._store.cache_clear()
    with pytest.raises(StorageError, match=r"a\.jpg"):
        listing.read_bytes(item)


def test_celebahq_in_an_object_store(bucket: Callable[..., str]) -> None:
    mapping = b"idx orig_idx orig_file\n0 182637 a.jpg\n1 182638 b.jpg\n"
    images = {f"CelebA-HQ-img/{n}.jpg": bytes([n]) for n in range(2)}
    url = bucket({celebahq.MAPPING: mapping, **images}, "CelebAMask-HQ")
    found = content(listed("celebahq", root=url))
    assert found == {"1.jpg": b"\1"}


def test_missing_file_is_told_from_a_missing_disk(tmp_path: Path) -> None:
    root = unpack(tmp_path / "photos", {"a.jpg": b"1", "b.jpg": b"2"})
    items = listed(root)
    (root / "a.jpg").unlink()
    with pytest.raises(Unreadable, match="No such file"):
        listing.read_bytes(items[0])
    (root / "b.jpg").unlink()
    with pytest.raises(StorageError, match="its file system is mounted"):
        listing.read_bytes(items[1])


@pytest.mark.parametrize("failures", [2, 99])
def test_a_disk_that_is_away_for_a_moment_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    (item,) = listed(unpack(tmp_path / "photos", {"a.jpg": b"1"}))
    asked = []

    def flaky(path: str) -> Any:
        asked.append(path)
        if len(asked) <= failures:
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return io.BytesIO(b"1")

    monkeypatch.setattr(locations, "opened", flaky)
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    if failures == 2:
        assert listing.read_bytes(item) == b"1"
    else:
        with pytest.raises(StorageError, match="Stale file handle"):
            listing.read_bytes(item)
        assert len(asked) == 4


@pytest.mark.parametrize("away", [True, False])
def test_a_damaged_file_is_told_from_a_soft_mount_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    (item,) = listed(unpack(tmp_path / "photos", {"a.jpg": b"1"}))
    asked = []

    def failing(path: object, *_: Any) -> Any:
        asked.append(path)
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(locations, "opened", failing)
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    if away:
        monkeypatch.setattr(Path, "iterdir", failing)
        with pytest.raises(StorageError, match=r"a\.jpg: .* its file system is mounted"):
            listing.read_bytes(item)
    else:
        with pytest.raises(Unreadable, match="Input/output error"):
            listing.read_bytes(item)
    assert asked.count(item.location) == 4


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("lasts", [False, True])
def test_an_archive_on_a_mount_that_goes_away_is_nobodys_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lasts: bool
) -> None:
    """Not even where the folder can still be listed: an archive holds many images."""
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        pack(path, {"a.jpg": b"1", "b.jpg": b"2"})
    else:
        write_table(path, [b"1", b"2"])
    items = listed(path)
    asked, there = [], locations.opened

    def failing(file: Any) -> Any:
        asked.append(file)
        if lasts or len(asked) <= 2:
            raise OSError(errno.EIO, "Input/output error", file)
        return there(file)

    monkeypatch.setattr(locations, "opened", failing)
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: None)
    if lasts:
        with pytest.raises(StorageError, match=rf"a\.{kind}: Input/output error"):
            listing.read_bytes(items[1])
        assert len(asked) == 4
    else:
        assert listing.read_bytes(items[1]) == b"2"


def test_pipes_are_no_images_and_broken_links_are_unreadable(tmp_path: Path) -> None:
    root = unpack(tmp_path / "photos", {"a.jpg": b"1"})
    os.mkfifo(root / "pipe.jpg")
    (root / "z.jpg").symlink_to(root / "nothing")
    items = listed(root)
    assert [(item.image_id, item.size) for item in items] == [("a.jpg", 1), ("z.jpg", -1)]
    with pytest.raises(Unreadable):
        listing.read_bytes(items[1])
