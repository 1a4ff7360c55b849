"""Atomic writes of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from dhr_batch.pipeline.files import sha256, whole


def test_a_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.npz"
    target.write_bytes(b"before")
    with whole(target) as file:
        assert file.suffix == ".npz"
        file.write_bytes(b"after")
        assert target.read_bytes() == b"before"
    assert target.read_bytes() == b"after"
    assert [*tmp_path.iterdir()] == [target]
    assert sha256(target) == hashlib.sha256(b"after").hexdigest()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.yaml"
    target.write_bytes(b"before")

    def write() -> None:
        with whole(target) as file:
            file.write_bytes(b"half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write()
    assert target.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [target]
