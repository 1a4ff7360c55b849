"""The example of augmentation: what it trains on, and that it can tell what is there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from dhr_batch.benchmarks import augmentation
from dhr_batch.benchmarks.augmentation import (
    AGE,
    GENDER,
    SCORE,
    SETS,
    Example,
    compare,
    distinct,
    drawn,
    groups,
    training,
)
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import config
from dhr_batch.stages.context import Context
from dhr_batch.tests.pipeline.exported import EDITS, IDS, write_photographs, write_run

PHOTOGRAPHS, RECONSTRUCTIONS, EDITED = SETS


def faces(edits: int, count: int = 16) -> list[Example]:
    """Photographs that differ in 20 ways, one of which is the smile; edits change that alone."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        look = draw.normal(0, 3, 20) * (np.arange(20) != 3)
        smiles = [float(number % 2), *([float(number % 2)] if edits else [])]
        smiles += list(draw.uniform(-1, 2, edits))
        kinds = ["source", "refined", *["edit"] * edits]
        for kind, smile in zip(kinds, smiles, strict=False):
            scores = {SCORE: smile, AGE: 20.0 + number, GENDER: float(number % 4 > 1) - 0.5}
            pixels = look + smile * np.eye(20)[3]
            found.append(Example(f"{number}.png", str(number), kind, pixels, scores))
    return found


def test_it_learns_from_edits_what_photographs_do_not_show() -> None:
    results = {result.name: result for result in compare(faces(40))}
    assert [r.trained_on for r in results.values()] == [8, 16, 8 * 41]
    assert {len(r.auc) for r in results.values()} == {3}
    assert min(results[EDITED].auc) > 0.95
    assert mean(results[PHOTOGRAPHS].auc) < 0.9
    # Reconstructions show nothing new, and do not weigh more than one photograph does.
    assert results[RECONSTRUCTIONS].auc == results[PHOTOGRAPHS].auc


def test_many_pictures_of_a_photograph_weigh_as_much_as_one() -> None:
    photographs = faces(0)
    once, often = (augmentation._fitted(photographs * n, 0.5)[-1].coef_ for n in (1, 8))
    np.testing.assert_allclose(once, often, rtol=1e-3, atol=1e-5)


def test_edits_do_not_move_the_threshold() -> None:
    wide = [
        replace(e, scores=e.scores | {SCORE: e.score + 9}) if e.kind == "edit" else e
        for e in faces(5)
    ]
    for result in compare(wide):
        assert np.isfinite(result.auc).all()


def test_each_group_is_counted_by_itself() -> None:
    (result, *_) = compare(faces(2))
    assert list(result.accuracy) == [
        "all", "looks younger than 28", "looks 28 or older", "looks female", "looks male",
    ]  # fmt: skip
    counts = result.tested
    assert counts["all"] == 8
    assert counts["looks female"] + counts["looks male"] == pytest.approx(8)
    assert counts["looks younger than 28"] + counts["looks 28 or older"] == pytest.approx(8)
    assert {len(of_seeds) for of_seeds in result.accuracy.values()} == {3}
    members = groups([e for e in faces(2) if e.kind == "source"])
    assert {e.scores[GENDER] for e in members["looks female"]} == {-0.5}
    assert list(groups([replace(faces(0)[0], scores={SCORE: 1.0})])) == ["all"]


def test_nothing_of_a_tested_person_is_seen() -> None:
    found = faces(2)
    photographs = [e for e in found if e.kind == "source"]
    persons = drawn(photographs, 0)
    assert len(persons) == len(photographs) / 2
    assert persons != drawn(photographs, 1)
    # Of two persons whose smiles are neighbours, one is drawn.
    assert sum(e.score for e in photographs if e.person in persons) == len(persons) / 2
    for name, count in ((PHOTOGRAPHS, 1), (RECONSTRUCTIONS, 2), (EDITED, 3)):
        seen = training(found, persons, SETS[name])
        assert len(seen) == count * len(persons)
        assert {e.person for e in seen} == persons


def test_photographs_without_edits_are_only_tested() -> None:
    others = [replace(e, image_id=f"x{e.image_id}", person=f"x{e.person}") for e in faces(0, 30)]
    for result in compare([*faces(1), *others]):
        assert result.trained_on <= 16
        assert result.tested["all"] == 8 + 30


def test_the_command_on_a_small_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_photographs(tmp_path / "photographs"))
    words = [str(run), "--json", str(tmp_path / "out.json")]
    result = CliRunner().invoke(augmentation.main, words)
    assert result.exit_code == 0, result.output
    assert "on photographs" in result.output
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["name"] for row in rows] == list(SETS)
    persons = len(IDS) // 2
    assert [row["trained_on"] for row in rows[:2]] == [persons, 2 * persons]
    assert (len(EDITS) - 1) * persons < rows[2]["trained_on"] <= (len(EDITS) + 1) * persons
    assert all(0 <= auc <= 1 for row in rows for auc in row["auc"])


class Faces:
    """Finds landmarks in all pictures but the last one."""

    def __init__(self, pictures: int) -> None:
        self.left = pictures

    def locate(self, picture: np.ndarray) -> tuple[np.ndarray, str]:
        self.left -= 1
        return np.zeros(4), "hog" if self.left else "ffhq"

    def find(self, picture: np.ndarray, box: np.ndarray) -> np.ndarray:
        return np.ones((68, 2))


def test_generated_faces_are_embedded_refined_and_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = config.preset("tiny")
    # All is in-domain, so that edits show.
    mask = tiny["segment"] | {"thresholds": {"other": 100}}
    chosen = tiny | {"segment": mask, "edit": augmentation.SETTINGS["edit"]}
    monkeypatch.setattr(augmentation, "SETTINGS", chosen)
    smile = SimpleNamespace(score=lambda portrait: {"smile": float(portrait.rgb.mean())})
    looks = SimpleNamespace(score=lambda portrait: {"age": 30.0, "gender": -1.0})
    stand_ins = {
        ("landmarks", "dlib68"): Faces(2 * 4 + 3),
        ("scores", "landmarks"): smile,
        ("scores", "age-gender"): looks,
    }
    plain = Context.network
    network = lambda self, *name: stand_ins.get(name) or plain(self, *name)  # noqa: E731
    monkeypatch.setattr(Context, "network", network)
    found = list(augmentation.generated(2, 3))
    kinds = ["source", "refined", "edit", "edit"]
    assert [e.kind for e in found] == [*kinds, *kinds, "source", "source"]
    names = ["face-0-0", "face-0-1", "face-1-0", "face-1-1"]
    assert list(dict.fromkeys(e.image_id for e in found)) == names
    assert {e.pixels.shape for e in found} == {(24 * 16,)}
    assert found[0].scores == {SCORE: found[0].score, AGE: 30.0, GENDER: -1.0}
    assert len({e.score for e in found}) == len(found)


def test_too_few_persons_are_refused() -> None:
    with pytest.raises(Refused, match=r"16 photographs .* show 0 persons with edits: 4 are"):
        compare(faces(0))
    of_one = [replace(face, person="ann") for face in faces(1)]
    with pytest.raises(Refused, match=r"16 photographs .* show 1 persons"):
        compare(of_one)


def test_a_photograph_of_two_runs_counts_once() -> None:
    found = faces(2)
    both = distinct([*found, *faces(2)])
    assert [e.image_id for e in both if e.kind == "source"] == [f"{n}.png" for n in range(16)]
    assert sum(e.kind == "edit" for e in both) == 2 * 16 * 2


def test_a_wrong_pattern_is_refused() -> None:
    result = CliRunner().invoke(augmentation.main, ["run", "--person", "("])
    assert result.exit_code == 2
    assert "not a regular expression" in result.output
