"""Parquet files that others wrote: columns, ids and row groups of every kind.

Each test names the folder of the case that it comes from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dhr_batch.pipeline.datasets import listing
from dhr_batch.pipeline.datasets.items import DatasetError, Rules, Unreadable

PNG = frozenset({".png"})


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_columns_with_dots_and_names_twice(tmp_path: Path) -> None:
    """Case `parquet_column_names`."""
    rules = Rules(PNG)
    place = parquet(tmp_path / "dots.parquet", **{"a.bytes": pa.array([b"one"], pa.binary())})
    (item,) = listing.scan(place, rules).items
    assert listing.read_bytes(item) == b"one"
    twice = pa.table([pa.array([b"1"]), pa.array([b"2"])], names=["image", "image"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    for column in (None, "image"):
        with pytest.raises(DatasetError, match="columns 0 and 1 are both called 'image'"):
            listing.scan(str(tmp_path / "twice.parquet"), rules._replace(column=column))


@pytest.mark.parametrize("images", [[[b"1", b"2"]], [[{"bytes": b"1", "path": "a.png"}]]])
def test_lists_of_images_are_told(tmp_path: Path, images: list[Any]) -> None:
    place, rules = parquet(tmp_path / "lists.parquet", images=images), Rules(PNG)
    with pytest.raises(DatasetError, match=r"'images' holds lists of images.*row for each image$"):
        listing.scan(place, rules)
    place = parquet(tmp_path / "both.parquet", images=images, thumbnail=[b"3"], tags=[["a"]])
    with pytest.raises(DatasetError, match=r"row for each image, or set 'column: NAME' in "):
        listing.scan(place, rules)
    (item,) = listing.scan(place, rules._replace(column="thumbnail")).items
    assert listing.read_bytes(item) == b"3"


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([{"a": 1}], "holds struct"),
        ([[1]], "holds list"),
        ([1.5], "holds double"),
        ([b"x"], "holds binary"),
        (["x" * 5000], "has a text of 5000 bytes"),
    ],
)
def test_ids_of_odd_types(tmp_path: Path, ids: list[Any], said: str) -> None:
    """Case `parquet_column_names`: the types of all columns that are used."""
    place = parquet(tmp_path / "t.parquet", image=[b"one"], key=ids)
    with pytest.raises(DatasetError, match=said):
        listing.scan(place, Rules(PNG, column="image", id_column="key"))


def test_paths_that_are_no_texts_are_left_alone(tmp_path: Path) -> None:
    """Case `parquet_column_names`."""
    place = parquet(tmp_path / "t.parquet", image=[{"bytes": b"one", "path": 3}])
    (item,) = listing.scan(place, Rules(PNG)).items
    assert (item.image_id, listing.read_bytes(item)) == ("00000000", b"one")


def test_a_row_group_that_unpacks_to_much_more_is_not_read(tmp_path: Path) -> None:
    """Case `parquet_row_group_bomb`, with 320 MB, which are written but never read."""
    rows = pa.array([b"\0" * 2**20 * 5] * 64, pa.binary())
    options = {"compression": "zstd", "use_dictionary": False}
    pq.write_table(
        pa.table({"image": rows, "id": rows.cast(pa.string())}), tmp_path / "t.parquet", **options
    )
    pq.write_table(pa.table({"image": rows}), tmp_path / "s.parquet", row_group_size=8, **options)
    del rows
    item = listing.scan(str(tmp_path / "t.parquet"), Rules(PNG)).items[3]
    before = pa.total_allocated_bytes()
    with pytest.raises(Unreadable, match=r"unpacks from \d+ to \d+ bytes"):
        listing.read_bytes(item)
    assert pa.total_allocated_bytes() - before < 2**20
    with pytest.raises(DatasetError, match="unpacks from"):
        listing.scan(str(tmp_path / "t.parquet"), Rules(PNG, column="image", id_column="id"))
    item = listing.scan(str(tmp_path / "s.parquet"), Rules(PNG)).items[3]
    assert listing.read_bytes(item) == b"\0" * 2**20 * 5


def test_more_rows_than_a_file_can_hold(tmp_path: Path) -> None:
    """Case `parquet_row_group_bomb`: rows that take no bytes."""
    place = parquet(tmp_path / "t.parquet", image=pa.nulls(1_100_000, pa.binary()))
    with pytest.raises(DatasetError, match=r"name 1100000 rows"):
        listing.scan(place, Rules(PNG))


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    rows = [bytes([n]) * (n + 1) for n in range(100)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "t.parquet", row_group_size=60)
    items = listing.scan(str(tmp_path / "t.parquet"), Rules(PNG)).items
    for n in (*range(100), *range(99, -1, -7), 5, 4, 60, 59):
        assert listing.read_bytes(items[n]) == rows[n]
