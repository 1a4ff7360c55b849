"""The list of the files that dhr-batch has written to a place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.storage import ownership
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import BENCHMARK, RUN, Owned
from dhr_batch.tests.pipeline.foreign import MINE, put


@pytest.fixture
def owned(place: str) -> Owned:
    owned = Owned(connect(place), BENCHMARK)
    owned.claim()
    return owned


def test_a_kill_between_the_list_and_the_file_leaves_both_known(owned: Owned) -> None:
    assert owned.write("a", b"first")
    # Noted, and killed before the file was written.
    assert owned.note("a", "0" * 64)
    again = Owned(owned.storage, BENCHMARK)
    assert again.write("a", b"third")
    assert again.storage.read("a") == b"third"
    again.storage.replace("a", MINE)
    assert not Owned(owned.storage, BENCHMARK).write("a", b"fourth")
    assert again.storage.read("a") == MINE


def test_two_commands_that_write_at_once_know_the_files_of_both(owned: Owned) -> None:
    other = Owned(owned.storage, BENCHMARK)
    assert owned.write("a", b"a")
    assert other.write("b", b"b")
    assert owned.write("c", b"c")
    assert Owned(owned.storage, BENCHMARK).files.keys() == {"a", "b", "c"}


def test_a_claimed_place_is_not_claimed_for_something_else(owned: Owned) -> None:
    with pytest.raises(Refused, match="contains a benchmark of dhr-batch"):
        Owned(owned.storage, ownership.REPORT).claim()


def test_hidden_and_empty_folders_leave_a_place_free(tmp_path: Path) -> None:
    (tmp_path / "masks" / "more").mkdir(parents=True)
    put(tmp_path, {".DS_Store": MINE})
    Owned(connect(tmp_path), RUN).claim()
    assert json.loads((tmp_path / "_state/owner.json").read_bytes())["kind"] == RUN
    assert os.listdir(tmp_path / "masks") == ["more"]
