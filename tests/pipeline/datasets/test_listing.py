"""Images in folders, tars, Parquet files and an object store: ids, order, content, errors."""

from __future__ import annotations

import errno
import io
import os
import random
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhr_batch.pipeline.datasets import celebahq, listing, named, parquet
from dhr_batch.pipeline.datasets.items import DatasetError, Unreadable, image_id
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage import locations
from dhr_batch.tests.pipeline.listed import content, listed, unpack

# In plan order: code point by code point.
FILES = {
    "a b#1.jpg": b"first",
    "sub/10.png": b"second",
    "sub/2.PNG": b"third one",
    "ä/%41.webp": b"fourth",
}
OTHERS = {"sub/notes.txt": b"no image", ".hidden.jpg": b"-", "sub/._2.png": b"-", "README": b"-"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))


def pack(path: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_table(path: Path, column: list[Any], group: int = 2, **others: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": column, **others}), path, row_group_size=group)
    return path


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


# ----------------------------------------------------------------------------- ids and order


@given(st.text())
def test_ids_are_normalised_once_and_can_be_stored(text: str) -> None:
    once = image_id(text)
    assert image_id(once) == once
    assert once.encode("utf-8").decode("utf-8") == once
    assert image_id(unicodedata.normalize("NFD", text)) == image_id(
        unicodedata.normalize("NFC", text)
    )


@given(st.binary(max_size=40))
def test_names_of_any_bytes_have_ids(name: bytes) -> None:
    image_id(os.fsdecode(name)).encode("utf-8")


def test_order_does_not_depend_on_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unpack(tmp_path / "photos", FILES | OTHERS)
    before = listed(root)
    assert content(before) == FILES
    assert [item.image_id for item in before] == list(FILES)
    real = locations.walk

    def shuffled(*arguments: Any) -> Iterator[locations.File]:
        files = list(real(*arguments))
        random.Random(5).shuffle(files)
        return iter(files)

    monkeypatch.setattr(locations, "walk", shuffled)
    assert listed(root) == before
    moved = listed(root.rename(tmp_path / "elsewhere"))
    assert [(i.image_id, i.mark) for i in moved] == [(i.image_id, i.mark) for i in before]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.JPG", ".jpg"),
        ("b.tar.gz", ".tar.gz"),
        ("x.y/b", ""),
        (".tar", ""),
        ("s3://bucket/a.tar", ".tar"),
    ],
)
def test_extensions(name: str, expected: str) -> None:
    assert listing.extension(name) == expected


# ----------------------------------------------------------------------------- tar


def test_tar_has_the_ids_and_content_of_the_folder(tmp_path: Path) -> None:
    shuffled = dict(reversed((FILES | OTHERS).items()))
    path = pack(tmp_path / "faces.tar", shuffled, prefix="./")
    dataset = named.find(path)
    assert dataset.name == "faces"
    items, ignored = named.scan(dataset)
    assert [item.image_id for item in items] == list(FILES)
    assert content(items) == FILES
    assert ignored == {".txt": 1, "no extension": 1, "hidden": 2}


def test_folder_of_tars_is_one_dataset(tmp_path: Path) -> None:
    pack(tmp_path / "set" / "0.tar", {"b.jpg": b"1", "b.json": b"{}"})
    pack(tmp_path / "set" / "more" / "1.tar", {"a.jpg": b"22"})
    assert content(listed(tmp_path / "set")) == {"a.jpg": b"22", "b.jpg": b"1"}
    # Images beside the archives decide otherwise, unless the format is given.
    unpack(tmp_path / "set", {"c.png": b"3"})
    assert content(listed(tmp_path / "set")) == {"c.png": b"3"}
    assert list(content(listed(tmp_path / "set", format="tar"))) == ["a.jpg", "b.jpg"]


def test_one_name_in_two_tars_needs_the_name_of_the_tar(tmp_path: Path) -> None:
    for number in (0, 1):
        pack(tmp_path / "set" / f"{number}.tar", {"a.jpg": bytes([number])})
    with pytest.raises(DatasetError, match=r"0\.tar.*1\.tar.*'a\.jpg'.*archive_in_id: true"):
        listed(tmp_path / "set")
    found = content(listed(tmp_path / "set", archive_in_id=True))
    assert found == {"0.tar/a.jpg": b"\0", "1.tar/a.jpg": b"\1"}


def test_long_names_links_and_sparse_members(tmp_path: Path) -> None:
    long = f"{'d' * 90}/{'n' * 200}.jpg"
    path = pack(tmp_path / "faces.tar", {"real.jpg": b"pixels", long: b"long"})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "real.jpg"
        archive.addfile(link)
    assert content(listed(path)) == {long: b"long", "real.jpg": b"pixels"}


def test_compressed_or_damaged_tar_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "faces.tar"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DatasetError, match=r"faces\.tar: .*without compression"):
        listed(path)
    whole = pack(path, {"a.jpg": b"1" * 2000, "b.jpg": b"2" * 2000}).read_bytes()
    path.write_bytes(whole[:4000])
    with pytest.raises(DatasetError, match=r"faces\.tar: it cannot be read"):
        listed(path)


def test_tar_that_shrank_or_vanished_since_the_listing(tmp_path: Path) -> None:
    path = pack(tmp_path / "faces.tar", {"a.jpg": b"1" * 2000})
    (item,) = listed(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Unreadable, match="ends before"):
        listing.read_bytes(item)
    path.unlink()
    with pytest.raises(StorageError, match=r"faces\.tar"):
        listing.read_bytes(item)


# ----------------------------------------------------------------------------- Parquet


def test_hugging_face_rows_are_called_by_their_paths_in_row_order(tmp_path: Path) -> None:
    names = ["z.jpg", "a.jpg", "ä.jpg"]
    rows = [{"bytes": name.encode(), "path": name} for name in names]
    path = write_table(tmp_path / "train.parquet", rows, label=[0, 1, 2])
    assert content(listed(path)) == {name: name.encode() for name in names}


@pytest.mark.parametrize("paths", [[None, None, None], ["x.jpg", "x.jpg", "y.jpg"]])
def test_without_paths_of_their_own_rows_have_numbers(
    tmp_path: Path, paths: list[str | None]
) -> None:
    rows = [{"bytes": bytes([n]), "path": path} for n, path in enumerate(paths)]
    path = write_table(tmp_path / "set" / "a.parquet", rows)
    expected = {f"{n:08d}": bytes([n]) for n in range(3)}
    assert content(listed(path)) == expected
    write_table(tmp_path / "set" / "b.parquet", rows[:1])
    several = {f"a.parquet/{name}": data for name, data in expected.items()}
    assert content(listed(tmp_path / "set")) == several | {"b.parquet/00000000": b"\0"}


def test_columns_are_chosen_by_the_description(tmp_path: Path) -> None:
    table = {"other": [b"x", b"y"], "key": [7, 3]}
    path = write_table(tmp_path / "t.parquet", [b"one", b"two"], **table)
    with pytest.raises(DatasetError, match=r"several columns.*image, other.*'column: NAME'"):
        listed(path)
    with pytest.raises(DatasetError, match=r"'key' holds no encoded images.*image, other"):
        listed(path, column="key")
    with pytest.raises(DatasetError, match=r"no column 'kex'; choose from its columns"):
        listed(path, column="image", id_column="kex")
    assert content(listed(path, column="other", id_column="key")) == {"7": b"x", "3": b"y"}
    with pytest.raises(DatasetError, match="same id '7'"):
        listed(write_table(path, [b"1", b"2"], key=[7, 7]), id_column="key")


def test_a_row_without_image_and_a_damaged_row_group(tmp_path: Path) -> None:
    rows = [{"bytes": b"1" * 99, "path": "a"}, None, {"bytes": None, "path": "c"}]
    path = write_table(tmp_path / "t.parquet", [*rows, {"bytes": b"4" * 99, "path": "d"}])
    items = listed(path)
    assert listing.read_bytes(items[0]) == b"1" * 99
    for item in items[1:3]:
        with pytest.raises(Unreadable, match="holds no image"):
            listing.read_bytes(item)
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    for cache in (parquet._kept, parquet._image_rows):
        cache.cache_clear()
    assert listing.read_bytes(items[0]) == b"1" * 99
    with pytest.raises(Unreadable, match="row 3 cannot be read"):
        listing.read_bytes(items[3])


def test_a_changed_row_changes_the_marks_of_its_group(tmp_path: Path) -> None:
    rows = [{"bytes": os.urandom(100 + n), "path": f"{n}.jpg"} for n in range(4)]
    path = write_table(tmp_path / "t.parquet", rows)
    os.utime(path, (1, 1))
    before = listed(path)
    rows[3]["bytes"] = os.urandom(200)
    write_table(path, rows)
    os.utime(path, (1, 1))
    after = listed(path)
    assert [one.mark == other.mark for one, other in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        False,
    ]


# ----------------------------------------------------------------------------- object store


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


# ----------------------------------------------------------------------------- local disks


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

    def flaky(path: str, mode: str) -> Any:
        asked.append(path)
        if len(asked) <= failures:
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return io.BytesIO(b"1")

    monkeypatch.setattr(locations, "open", flaky, raising=False)
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

    monkeypatch.setattr(locations, "open", failing, raising=False)
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
    asked, there = [], open

    def failing(file: Any, mode: str = "r") -> Any:
        asked.append(file)
        if lasts or len(asked) <= 2:
            raise OSError(errno.EIO, "Input/output error", file)
        return there(file, mode)

    monkeypatch.setattr(locations, "open", failing, raising=False)
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
