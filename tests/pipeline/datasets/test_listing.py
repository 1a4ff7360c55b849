"""Ids of images and their order, wherever they lie."""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhr_batch.pipeline.datasets import listing
from dhr_batch.pipeline.datasets.items import image_id
from dhr_batch.pipeline.storage import locations
from dhr_batch.tests.pipeline.listed import FILES, OTHERS, content, listed, unpack


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))


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
