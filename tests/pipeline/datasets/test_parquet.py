"""Images in rows of Parquet files: ids, content, marks, errors."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dhr_batch.pipeline.datasets import listing, parquet
from dhr_batch.pipeline.datasets.items import DatasetError, Unreadable
from dhr_batch.tests.pipeline.listed import content, listed, write_table


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))


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
