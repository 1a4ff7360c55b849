"""Temporary folders go away, also those of killed processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dhr_batch.pipeline.errors import StorageError
from dhr_batch.pipeline.storage.scratch import scratch

_OTHER = """
import sys
from dhr_batch.pipeline.storage.scratch import scratch
with scratch() as folder:
    (folder / "images.parquet").write_bytes(b"half")
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path / f"dhr-batch.scratch-{os.getuid()}"


def test_it_is_gone_afterwards(place: Path) -> None:
    with scratch() as folder:
        assert list(place.iterdir()) == [folder]
        (folder / "images.parquet").write_bytes(b"rows")
    assert list(place.iterdir()) == []


def test_folders_of_other_names_and_users_are_left_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("dhr-batch-demo", "dhr-batch.scratch-mine", "part-0")
    for name in names:
        (tmp_path / name).mkdir()
    with scratch():
        pass
    assert {path.name for path in tmp_path.iterdir()} == {*names, place.name}
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    (tmp_path / f"dhr-batch.scratch-{os.getuid()}").mkdir()
    with pytest.raises(StorageError, match="belongs to another user"), scratch():
        pass


def test_what_a_killed_process_left_is_deleted_and_nothing_else(place: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _OTHER], stdin=pipe, stdout=pipe, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == "there\n"
        (theirs,) = place.iterdir()
        with scratch():
            assert (theirs / "images.parquet").read_bytes() == b"half"
        it.kill()
        it.wait()
    assert theirs.exists()
    with scratch() as folder:
        assert list(place.iterdir()) == [folder]
