"""The text of a plan, whose lists of shards stay text until they are looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import plan as planning_plan
from dhr_batch.pipeline.planning import resume
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.records import plan_file
from dhr_batch.pipeline.runs.records.plan_file import Rows
from dhr_batch.pipeline.runs.records.stored_plan import RunSettings, StoredPlan

ROWS: list[list[Any]] = [["a.png", 'quote " and\nline', "ü ]"], [], ["z"]]
PLAN = StoredPlan(
    settings=RunSettings({"a": [1]}),
    shards=ROWS,
    contents=[[1, "2:x", None], [], [3]],
    schema=2,
)
TEXT = PLAN.to_json()


def in_lines(plan: dict[str, Any]) -> bytes:
    """As `plan_file.dumps` writes it, but with lists that may be damaged."""
    return plan_file.dumps(replace(PLAN, shards=plan["shards"], contents=plan["contents"]))


_text = st.text(st.characters(blacklist_categories=["Cs"]))


@given(st.lists(st.lists(_text)), st.dictionaries(st.sampled_from("abc"), _text, min_size=1))
def test_what_is_written_is_read_back(shards: list[list[str]], head: dict[str, str]) -> None:
    contents = [[len(i) for i in row] for row in shards]
    plan = StoredPlan(settings=RunSettings(head), shards=shards, contents=contents)
    text = plan_file.dumps(plan)
    content = json.loads(text)
    assert next(iter(content)) == "sha256"
    assert {key: value for key, value in content.items() if key != "sha256"} == plan.to_json()
    found = plan_file.loads(text)
    assert isinstance(found.shards, Rows)
    assert found == plan
    assert plan_file.dumps(found) == text


def test_rows_are_a_sequence_of_lists() -> None:
    rows = plan_file.loads(plan_file.dumps(PLAN)).shards
    assert isinstance(rows, Rows)
    assert (len(rows), rows[0], rows[-1], rows[1:]) == (3, ROWS[0], ["z"], ROWS[1:])
    with pytest.raises(IndexError):
        rows[3]
    rows[1] = ["new"]
    assert list(rows) == [ROWS[0], ["new"], ["z"]]
    assert rows != ROWS


@pytest.mark.parametrize("indent", [None, 1, 2])
def test_a_plan_that_was_written_otherwise_is_read_too(indent: int | None) -> None:
    assert plan_file.loads(json.dumps(TEXT, indent=indent).encode()) == PLAN


def test_damage_is_told_when_the_plan_is_read() -> None:
    text = plan_file.dumps(PLAN)
    for cut in range(len(text) - 2):
        with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
            plan_file.loads(text[:cut])
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
        plan_file.loads(text.replace(b'["z"]', b'["z"'))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"contents": [[1, "2:x", None], []]}, "contents has no row 2"),
        ({"contents": [[1, "2:x"], [], [3]]}, "row 0 has different lengths in shards and contents"),
        (
            {"contents": [[1, "2:x", None], 5, [3]]},
            "contents has no row 1, or the row is not a list",
        ),
        ({"shards": "abc"}, "shards (is not a list|has no row 0)"),
    ],
)
@pytest.mark.parametrize("write", [in_lines, lambda plan: json.dumps(plan).encode()])
def test_lists_that_do_not_fit_together_are_told(
    changed: dict[str, Any], reason: str, write: Callable[[dict[str, Any]], bytes]
) -> None:
    text = write(TEXT | changed)
    with pytest.raises(ValueError, match=reason):
        plan_file.loads(text)


def test_what_follows_a_plan_is_told() -> None:
    with pytest.raises(json.JSONDecodeError, match="Extra data"):
        plan_file.loads(plan_file.dumps(PLAN) + b"garbage")
    with pytest.raises(json.JSONDecodeError, match="Extra data"):
        plan_file.loads(plan_file.dumps(PLAN) + b"\n}\n")


@pytest.mark.parametrize("lacking", ["schema", "fingerprint", "config", "shards", "contents"])
def test_a_plan_that_lacks_something_is_refused(tmp_path: Path, lacking: str) -> None:
    plan = {
        "schema": planning_plan.SCHEMA,
        "config": {"shard_size": 1},
        "shards": [],
        "contents": [],
    }
    plan["fingerprint"] = {"config": {}, "models": {}}
    run = RunFolder(tmp_path)
    stored = {key: value for key, value in plan.items() if key != lacking}
    run.storage.create("plan.json", json.dumps(stored).encode())
    with pytest.raises(Refused, match=f"plan.json: it is damaged .it lacks '{lacking}'"):
        resume._stored(run, tmp_path)
