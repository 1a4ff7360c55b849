"""Temporary folders go away, also those of killed processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dhr_batch.pipeline.scratch import scratch

_OTHER = """
import sys
from dhr_batch.pipeline.scratch import scratch
with scratch() as folder:
    (folder / "images.parquet").write_bytes(b"half")
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_it_is_gone_afterwards(place: Path) -> None:
    with scratch() as folder:
        assert list(place.iterdir()) == [folder]
        (folder / "images.parquet").write_bytes(b"rows")
    assert list(place.iterdir()) == []


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
