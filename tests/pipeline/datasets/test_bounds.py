"""What is read for one image is bounded, and a pipe is never waited for.

The case `file_read_whole`: a picture with gigabytes behind its end.
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dhr_batch.pipeline.datasets import check, listing, named
from dhr_batch.pipeline.datasets.items import Item, Unreadable
from dhr_batch.pipeline.storage import locations
from dhr_batch.pipeline.worker.reading import read_record
from dhr_batch.tests.pipeline.listed import listed, unpack

# Files of 2 MB are too large for images of this size.
SMALL = 0.001


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))


def picture() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def stored(tmp_path: Path, kind: str, data: bytes) -> Item:
    """An image in a folder, a tar or a Parquet file."""
    root = tmp_path / f"images.{kind}"
    if kind == "folder":
        unpack(root, {"a.png": data})
    elif kind == "tar":
        with tarfile.open(root, "w") as archive:
            info = tarfile.TarInfo("a.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    else:
        pq.write_table(pa.table({"image": [data]}), root)
    (item,) = listed(root)
    return item


def test_case_file_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpack(tmp_path / "photos", {"a.png": picture(), "b.png": picture()})
    os.truncate(root / "a.png", 200 * 2**30)
    items = listed(root)
    record = read_record(items[0], "")
    assert record.failure is not None
    assert record.failure.error_class == "too_large"
    assert "raise align.max_megapixels" in record.failure.message
    assert read_record(items[1], "").failure is None
    monkeypatch.setattr(check, "_detector", lambda result: None)
    found = check.check(named.find(str(root)), 9)
    assert [finding.kind for finding in found.broken] == ["too_large"]


def test_a_check_takes_the_limit_that_the_dataset_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_detector", lambda result: None)
    dataset = named.find(str(unpack(tmp_path / "photos", {"a.png": picture()})))
    for limit, kinds in ((0.004, ["too_large"]), (0.005, [])):
        config = {"align": {"max_megapixels": limit}}
        found = check.check(dataset.model_copy(update={"config": config}), 9)
        assert [finding.kind for finding in found.broken] == kinds


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_the_bound_follows_from_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(listing, "_METADATA", 2**20)
    item = stored(tmp_path, kind, bytes(2 * 2**20))
    with pytest.raises(
        Unreadable, match=r"larger than 1 MB, .*raise align\.max_megapixels"
    ) as caught:
        listing.read_bytes(item, SMALL)
    assert caught.value.error_class == "too_large"
    assert len(listing.read_bytes(item, 1000 * SMALL)) == 2 * 2**20


def test_a_file_that_has_grown_since_it_was_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_METADATA", 2**20)
    item = stored(tmp_path, "folder", picture())
    os.truncate(item.location, 2**40)
    with pytest.raises(Unreadable, match="larger than"):
        listing.read_bytes(item, SMALL)


def test_a_pipe_in_place_of_a_photograph_is_not_waited_for(tmp_path: Path) -> None:
    item = stored(tmp_path, "folder", picture())
    os.unlink(item.location)
    os.mkfifo(item.location)
    record = read_record(item, "")
    assert record.failure is not None
    assert "a pipe or a device" in record.failure.message
    with pytest.raises(OSError, match="a pipe or a device"):
        locations.open_file(item.location)
