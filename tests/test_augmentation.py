"""The example of augmentation: what it trains on, and that it can tell what is there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dhr_batch.benchmarks import augmentation
from dhr_batch.benchmarks.augmentation import Example, compare, distinct, training
from dhr_batch.pipeline.errors import Refused
from dhr_batch.tests.pipeline.exported import IDS, write_photographs, write_run


def faces(edits: int) -> list[Example]:
    """Photographs that differ in 20 ways, one of which is the smile; edits change that alone."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(8):
        look = draw.normal(0, 3, 20) * (np.arange(20) != 3)
        scores = [float(number % 2), *draw.uniform(-1, 2, edits)]
        for index, score in enumerate(scores):
            pixels = look + score * np.eye(20)[3]
            found.append(Example(f"{number}.png", str(number), index > 0, pixels, float(score)))
    return found


def test_it_learns_from_edits_what_photographs_do_not_show() -> None:
    plain, edited = compare(faces(40))
    assert (plain.trained_on, edited.trained_on) == (7, 7 * 41)
    assert plain.photographs == edited.photographs == 8
    assert plain.auc < edited.auc == 1.0


def test_nothing_of_a_held_out_photograph_is_seen() -> None:
    found = faces(2)
    seen = training(found, found[0])
    assert len(seen) == len(found) - 3
    assert {e.person for e in seen} == {e.person for e in found} - {found[0].person}


def test_the_command_on_a_small_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_photographs(tmp_path / "photographs"))
    words = [str(run), "--person", "^[^.]+", "--json", str(tmp_path / "out.json")]
    result = CliRunner().invoke(augmentation.main, words)
    assert result.exit_code == 0, result.output
    assert "illustration" in result.output
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["photographs", "photographs and edits"]
    assert rows[0]["trained_on"] == len(IDS) - 1
    assert rows[1]["trained_on"] > 40
    assert all(0 <= row["auc"] <= 1 for row in rows)


def test_too_few_photographs_are_refused() -> None:
    with pytest.raises(Refused, match=r"3 photographs .* show 3 persons: 4 are needed"):
        compare(faces(0)[:3])
    of_one = [replace(face, person="ann") for face in faces(0)]
    with pytest.raises(Refused, match=r"8 photographs .* show 1 persons"):
        compare(of_one)


def test_a_photograph_of_two_runs_counts_once() -> None:
    found = faces(2)
    both = distinct([*found, *faces(2)])
    assert [e.image_id for e in both if not e.edited] == [f"{n}.png" for n in range(8)]
    assert sum(e.edited for e in both) == 2 * 8 * 2


def test_a_wrong_pattern_is_refused() -> None:
    result = CliRunner().invoke(augmentation.main, ["run", "--person", "("])
    assert result.exit_code == 2
    assert "not a regular expression" in result.output
