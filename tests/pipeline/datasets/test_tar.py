"""Images in tar archives: ids, content, errors."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from dhr_batch.pipeline.datasets import listing, named
from dhr_batch.pipeline.datasets.items import DatasetError, Unreadable
from dhr_batch.pipeline.errors import StorageError
from dhr_batch.tests.pipeline.listed import FILES, OTHERS, content, listed, pack, unpack


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))


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


def test_archives_of_another_kind_are_counted(tmp_path: Path) -> None:
    pack(tmp_path / "set" / "0.tar", {"a.jpg": b"1"})
    unpack(tmp_path / "set", {"1.parquet": b"", "2.parquet": b"", "3.tar.gz": b""})
    items, ignored = named.scan(named.find(tmp_path / "set"))
    assert (list(content(items)), ignored) == (["a.jpg"], {".parquet": 2, ".tar.gz": 1})
    unpack(tmp_path / "set", {"b.jpg": b""})
    items, ignored = named.scan(named.find(tmp_path / "set"))
    assert ([*content(items)], ignored) == (["b.jpg"], {".parquet": 2, ".tar": 1, ".tar.gz": 1})


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
