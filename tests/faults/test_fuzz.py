"""Damaged files of every kind: no traceback, and bounded time and memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dhr_batch.tests.fuzz import READERS


def fuzz(examples: int, *readers: str) -> None:
    # In a process of its own, whose memory is measured and which may crash.
    words = [sys.executable, "-m", "dhr_batch.tests.fuzz", str(examples), *readers]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=3600)
    print(f"\n{done.stdout}", end="")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("slowest_s") == len(readers)


def test_fifty_damaged_files_of_every_kind() -> None:
    fuzz(50, *READERS)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_two_thousand_damaged_files(reader: str) -> None:
    fuzz(2000, reader)
