"""Which members of a tar are listed, and what is left out of archives."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.datasets.items import DatasetError
from dhr_batch.tests.pipeline.listed import Archive, content, scan, tar, unpack

LINKED: Archive = {"one.png": b"first", "two.png": "one.png", "./three.jpg": "./two.png"}
SECOND: Archive = {"second.png": b"second"}
JUNK = b"a signature".ljust(600, b"!")


def incremental(archive: bytes) -> bytes:
    """The archive as `tar -g` writes it, with times in its first header."""
    head = bytearray(archive[: tarfile.BLOCKSIZE])
    head[345:369] = b"15303307135\0" * 2
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + archive[tarfile.BLOCKSIZE :]


@pytest.mark.parametrize(
    ("parts", "files", "counted"),
    [
        ([tar(LINKED)], ["one.png", "three.jpg", "two.png"], {}),
        ([tar(LINKED), tar(SECOND)], ["one.png", "second.png", "three.jpg", "two.png"], {}),
        ([tar(SECOND), bytes(2**21), tar({"b.png": b"b"})], ["b.png", "second.png"], {}),
        ([tar(SECOND), JUNK], ["second.png"], {"unreadable rest of an archive": 1}),
        ([tar(SECOND), tar(SECOND)[:300]], ["second.png"], {"unreadable rest of an archive": 1}),
        ([bytes(1024), tar(SECOND)], ["second.png"], {}),
        (
            [tar({".store/1": b"first", "a.png": ".store/1", "b.png": "gone"})],
            ["a.png"],
            {"hidden": 1, "hard link without its target": 1},
        ),
        (
            [tar({"c.png": (tarfile.SYMTYPE, "d"), "d.png": (tarfile.FIFOTYPE, ""), **SECOND})],
            ["second.png"],
            {"symbolic link": 1, "no regular file": 1},
        ),
        ([tar({"a.jpg": b"", "a": b"1", "b.jpg": "a"})], ["a.jpg", "b.jpg"], {"no extension": 1}),
        ([tar({"a.jpg": b"1", "./a.jpg": "a.jpg"})], ["a.jpg"], {}),
        ([incremental(tar({"./a.jpg": b"1", "b.jpg": "a.jpg"}))], ["a.jpg", "b.jpg"], {}),
        (
            [tar({"../p/a.jpg": b"1", "p/../b.jpg": b"2", ".//c.jpg": b"3", "./../../d.jpg": b"4",
                  "../.e.jpg": b"5", "/f.jpg": b"6"})],
            ["/f.jpg", "b.jpg", "c.jpg", "d.jpg", "p/a.jpg"],
            {"hidden": 1},
        ),
        (
            [tar({"a.jpg": b"1", "b.jpg": b"2"})[:2048], tar({"./a.jpg": b"3"})],
            ["a.jpg", "b.jpg"],
            {"older file of the same name in a tar": 1},
        ),
    ],
)  # fmt: skip
def test_links_and_further_archives(
    tmp_path: Path, parts: list[bytes], files: list[str], counted: dict[str, int]
) -> None:
    """Case tar_hard_links."""
    path = tmp_path / "faces.tar"
    path.write_bytes(b"".join(parts))
    assert scan(path) == (files, counted)


def test_of_files_of_one_name_in_a_tar_the_last_counts(tmp_path: Path) -> None:
    """As `tar -r` appends a newer file, and as tar unpacks it."""
    path = tmp_path / "faces.tar"
    path.write_bytes(tar({"a.png": b"old", "b.png": b"b"}) + tar({"./a.png": b"new"}))
    found = content(named.list_images(named.find(path)))
    assert found == {"a.png": b"new", "b.png": b"b"}
    # A link is as old as its place in the archive, not as its target.
    path.write_bytes(tar({"a.png": b"old", "b.png": "a.png"}) + tar({"b.png": b"new"}))
    assert content(named.list_images(named.find(path))) == {"a.png": b"old", "b.png": b"new"}
    path.write_bytes(tar({"a.png": b"old", "b.png": b"b"}) + tar({"b.png": "a.png"}))
    assert content(named.list_images(named.find(path))) == {"a.png": b"old", "b.png": b"old"}
    path.write_bytes(tar({"\u00e9.png": b"1", "e\u0301.png": b"2"}))
    with pytest.raises(DatasetError, match=r"the same id .*; rename one of them$"):
        scan(path)


def test_a_hard_link_and_a_further_archive_have_the_content_of_the_folder(tmp_path: Path) -> None:
    """Case tar_hard_links."""
    path = tmp_path / "faces.tar"
    path.write_bytes(tar(LINKED) + tar(SECOND))
    expected = dict.fromkeys(("one.png", "two.png", "three.jpg"), b"first")
    found = content(named.list_images(named.find(path)))
    assert found == expected | {"second.png": b"second"}


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_archive_that_cannot_be_read_costs_only_itself(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "shards"
    pixels = io.BytesIO()
    pq.write_table(pa.table({"image": [b"1"], "key": ["1.png"]}), pixels)
    labels = io.BytesIO()
    pq.write_table(pa.table({"label": [1]}), labels)
    bad = {"0.tar": b"", "2.tar": b"\1" * 700, "3.tar": tar({"a.png": b"1"})[:600]}
    files = {"1.tar": tar({"1.png": b"1"})} | bad
    if kind == "parquet":
        bad = {"0.parquet": b"", "2.parquet": b"PAR1", "labels.parquet": labels.getvalue()}
        files = {"1.parquet": pixels.getvalue()} | bad
    settings = {"id_column": "key"} if kind == "parquet" else {}
    ids, ignored = scan(unpack(root, files), **settings)
    assert (ids, len(ignored), {*ignored.values()}) == (["1.png"], 3, {1})
    for name, counted in zip(sorted(bad), sorted(ignored), strict=True):
        assert counted.startswith(f"unreadable: {name} (")
    (root / f"1.{kind}").unlink()
    with pytest.raises(DatasetError, match=rf"0\.{kind}: it cannot be read"):
        scan(root, **settings)
