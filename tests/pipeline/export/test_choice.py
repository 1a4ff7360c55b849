"""Which pictures of a run an export takes, and into which split it puts them."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dhr_batch
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.export import choice
from dhr_batch.pipeline.export.filters import Filters
from dhr_batch.pipeline.export.pictures import Picture
from dhr_batch.tests.pipeline.exported import (
    ALL,
    EDITS,
    FACELESS,
    IDS,
    contents,
    dhr,
    exported,
    listed,
)


def test_filters_are_honoured(run: Path, tmp_path: Path) -> None:
    """Exactly the pictures that the tables of the run say should pass, and all others counted."""
    words = ["--min-identity", 0.88, "--effect", "smile=-0.3:0.6", "--max", "st_lpips_alex=0.25"]
    outcome = exported(run, tmp_path / "out", *words, "--max", "change_out=0.09")

    wide = dhr_batch.open(run).metrics_wide()
    expected = set()
    for image_id in IDS:
        for edit, strength in EDITS:
            row = wide.loc[(image_id, f"edit:{edit}:{strength:g}")]
            effect = row["score_smile"] - wide.loc[(image_id, "source")]["score_smile"]
            if (
                row["identity_dlib_cosine"] >= 0.88
                and (edit != "smile" or -0.3 <= effect <= 0.6)
                and row["st_lpips_alex"] <= 0.25
                and row["change_out"] <= 0.09
                and np.isfinite(row["score_yaw"])
            ):
                expected.add((image_id, edit, strength))
    found = {(row["image_id"], row["edit"], row["strength"]) for row in listed(tmp_path / "out")}
    assert found == expected
    assert 0 < len(found) < ALL
    assert outcome["pictures"] == len(found)
    assert sum(outcome["dropped"].values()) == ALL - len(found)
    assert outcome["dropped"]["no face found"] == FACELESS
    assert outcome["dropped"]["identity not measured"] == 1
    assert outcome["images"] == {"planned": 10, "with_rows": 9, "used": len({f[0] for f in found})}


def test_only_a_landmark_score_tells_of_a_face() -> None:
    picture = Picture("a", "a", "edit", "smile", 1.0, None, None, {"score_age": 30.0})
    assert Filters().reason(picture, {}) == "no face found"
    assert Filters().reason(replace(picture, scores={"score_smile": 0.1}), {}) is None


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["--edit", "smile"], [("smile", s) for s in (-2, -1, 1, 2)]),
        (["--edit", "smile", "--strength", "2"], [("smile", 2)]),
        (["--strength", "-1", "--strength", "1.5:"], [("smile", -1), ("smile", 2), *EDITS[4:]]),
        (["--edit", "yaw", "--edit", "smile", "--strength", ":-2"], [("smile", -2)]),
        (["--edit", "smile", "--effect", "smile=-9:9"], [("smile", s) for s in (-2, -1, 1, 2)]),
    ],
)
def test_edits_and_strengths_are_chosen(
    run: Path, tmp_path: Path, words: list[str], chosen: list[tuple[str, float]]
) -> None:
    outcome = exported(run, tmp_path / "out", "--keep-faceless", "--include", "refined", *words)
    found = Counter((r["edit"], r["strength"]) for r in listed(tmp_path / "out") if r["edit"])
    assert found == dict.fromkeys(chosen, len(IDS))
    # What was not asked for was not dropped.
    assert outcome["dropped"] == {}
    assert outcome["counts"]["train"]["refined"] == len(IDS)


def test_edits_are_balanced_in_each_split(run: Path, tmp_path: Path) -> None:
    words = ["--balance", "edit", "--val", 0.4]
    outcome = exported(run, tmp_path / "one", *words)
    rows = listed(tmp_path / "one")
    counts = Counter((row["split"], row["edit"]) for row in rows)
    assert set(counts) == {(s, e) for s in ("train", "validation") for e in ("smile", "yaw")}
    for split in ("train", "validation"):
        assert counts[split, "smile"] == counts[split, "yaw"] > 0
    left_out = outcome["dropped"]["balancing edit"]
    assert left_out == ALL - FACELESS - len(rows) > 0
    # The rarest value, yaw, is kept whole.
    assert sum(row["edit"] == "yaw" for row in rows) == 2 * len(IDS) - FACELESS

    exported(run, tmp_path / "again", *words)
    assert contents(tmp_path / "again").keys() == contents(tmp_path / "one").keys()
    exported(run, tmp_path / "seed", "--balance", "edit", "--seed", 1)
    exported(run, tmp_path / "none", "--balance", "edit")
    assert contents(tmp_path / "seed").keys() != contents(tmp_path / "none").keys()


@pytest.mark.parametrize("bins", ["1", "\u00b2", "9" * 5000, "-3", "2.0", ""])
def test_other_numbers_of_bins_are_refused(bins: str) -> None:
    with pytest.raises(Refused, match="it needs a number of bins"):
        choice.parse_balance(f"score_smile:{bins}")


@pytest.mark.parametrize("label", ["score_smile", "change_yaw"])
def test_bins_of_a_score_are_balanced(run: Path, tmp_path: Path, label: str) -> None:
    exported(run, tmp_path / "all")
    exported(run, tmp_path / "out", "--balance", f"{label}:3")
    everything = np.array([row[label] for row in listed(tmp_path / "all")])
    edges = np.linspace(everything.min(), everything.max(), 4)
    chosen = np.array([row[label] for row in listed(tmp_path / "out")])
    counts = np.histogram(chosen, edges)[0]
    assert len(set(counts)) == 1
    assert counts[0] == np.histogram(everything, edges)[0].min() > 1


def test_effects_have_bins_of_their_own_edit() -> None:
    """Those of yaw, in degrees, would leave all smiles in one bin."""
    effects = {"smile": (0.0, 0.1, 0.3, 0.4), "yaw": (0.0, 1.0, 30.0, 40.0)}
    pictures = [
        Picture(str(n), str(n), "edit", edit, 1.0, effect, None, {})
        for edit, values in effects.items()
        for n, effect in enumerate((*values, values[-1]))
    ]
    chosen, unknown = choice.balance(dict.fromkeys(pictures, "train"), ("effect", 2), seed=0)
    assert unknown == 0
    low = {edit: sum(p.edit == edit and p.effect <= values[1] for p in chosen)
           for edit, values in effects.items()}  # fmt: skip
    assert low == {"smile": 2, "yaw": 2}
    assert Counter(p.edit for p in chosen) == {"smile": 4, "yaw": 4}


@pytest.mark.parametrize(("share", "said"), [(1e-9, "no photograph"), (1 - 1e-9, "all photograph")])
def test_a_split_without_photographs_is_said(
    run: Path, tmp_path: Path, share: float, said: str
) -> None:
    words = [run, "--out", tmp_path / "out", "--val", share]
    result = dhr(*words, "--strict")
    assert result.exit_code == 2
    assert re.search(f"Error: --strict: {said}.* validation\nHint: .*--val", result.stderr)
    assert not list(tmp_path.iterdir())
    result = dhr(*words)
    assert result.exit_code == 0
    assert re.search(f"note  .*{said}.* into validation: .*--val or change --seed", result.stdout)
    result = dhr(*words, "--json", "--fresh")
    assert re.search(f"note: {said}", result.stderr)
    assert json.loads(result.stdout)["note"].startswith(said)


def test_a_photograph_is_on_one_side(run: Path, tmp_path: Path) -> None:
    exported(run, tmp_path / "out", "--val", 0.4, "--include", "source")
    sides: dict[str, set[str]] = {}
    for row in listed(tmp_path / "out"):
        sides.setdefault(row["image_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert set.union(*sides.values()) == {"train", "validation"}


def test_a_person_is_on_one_side(run: Path, tmp_path: Path) -> None:
    for seed in range(4):
        exported(run, tmp_path / str(seed), "--val", 0.5, "--person", "^([a-z]+)/", "--seed", seed)
        pairs = {(r["image_id"].split("/")[0], r["split"]) for r in listed(tmp_path / str(seed))}
        assert len(pairs) == 3
    for pattern in ("^x", "^(x)?"):
        result = dhr(run, "--out", tmp_path / "no", "--person", pattern)
        assert result.exit_code == 2
        assert "matches nothing" in result.stderr


def test_the_split_depends_on_nothing_else() -> None:
    """Not on other images, so none moves when some are added; and its share is as asked for."""
    ids = [f"{number}.png" for number in range(20_000)]
    sides = [choice.side(who, 0.1, 0) for who in ids]
    share = sides.count("validation") / len(ids)
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / len(ids)) ** 0.5
    # More for validation only adds to it.
    more = [choice.side(who, 0.2, 0) for who in ids]
    assert all(b == "validation" for a, b in zip(sides, more, strict=True) if a == "validation")
    assert {choice.side(who, 0.0, 0) for who in ids} == {"train"}
    assert {choice.side(who, 1.0, 0) for who in ids} == {"validation"}


def test_identity_that_was_not_measured_is_no_filter(run: Path, tmp_path: Path) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(run, blind)
    plan = json.loads((blind / "plan.json").read_text())
    plan["config"]["measure"]["identity"] = []
    (blind / "plan.json").write_text(json.dumps(plan))
    result = dhr(blind, "--out", tmp_path / "out", "--min-identity", "0.5")
    assert result.exit_code == 2
    assert "did not measure identity" in result.stderr


@pytest.mark.parametrize("setting", [{"landmarks": "none"}, {"scores": []}, {"scores": ["a:B"]}])
def test_a_run_without_landmarks_drops_nothing_for_faces(
    run: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(run, blind)
    plan = json.loads((blind / "plan.json").read_text())
    plan["config"]["measure"] |= setting
    (blind / "plan.json").write_text(json.dumps(plan))
    outcome = exported(blind, tmp_path / "out")
    assert outcome["pictures"] == ALL
    assert outcome["dropped"] == {}
