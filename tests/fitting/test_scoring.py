"""Scores of samples by any scorer, and the command that fits directions of them."""

import json

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from dhr_batch.cli import main
from dhr_batch.fitting import direction_sets, samples, scoring
from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages.context import Context
from dhr_batch.stages.edit.direction_files import read
from dhr_batch.stages.measure.face_scores import scores as face_scores
from dhr_batch.stages.networks.faces.identity import Portrait
from dhr_batch.stages.registry import UnknownName
from dhr_batch.stages.tensors import tensor_to_images
from dhr_batch.tests.fitting.colours import Colours

SCORER = "dhr_batch.tests.fitting.colours:Colours"


class Finder:
    def locate(self, image):
        return np.zeros(4), "hog"

    def find(self, image, box):
        return np.random.default_rng(int(image.sum())).uniform(0, 32, (68, 2))


class Features:
    def features(self, x):
        return [x.mean(1, keepdim=True).expand(-1, 256, -1, -1)]


@pytest.fixture
def context(monkeypatch):
    made = Context("cpu", "tiny", models=lambda name: None)
    made._networks[("landmarks", "dlib68")] = Finder()
    made._networks[("perceptual", "st_lpips_alex")] = Features()
    monkeypatch.setattr(Colours, "calls", 0)
    return made


def test_scores_are_kept_and_an_interrupted_run_goes_on(context, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SHARD", 4)
    data = samples.collect(context, tmp_path, 8, seed=3)
    judges = scoring.load(context, [SCORER])
    half = samples.load(tmp_path, 1)
    scoring.collect(context, tmp_path, half, judges)
    assert Colours.calls == 4
    told = []
    table = scoring.collect(context, tmp_path, data, judges, lambda *a: told.append(a))
    assert Colours.calls == 8
    assert told == [(4, 8), (8, 8)]
    again = scoring.collect(context, tmp_path, data, judges)
    assert Colours.calls == 8
    assert table.keys() == {"red", "blue"}
    for name, values in table.items():
        assert values.shape == (8,)
        assert np.array_equal(values, again[name], equal_nan=True)
    generator = context.network("generator", "tiny")
    picture = tensor_to_images(generator.synthesize(generator.broadcast(torch.tensor(data.w))))[5]
    expected = scoring.row(Colours(None), Portrait(picture))
    assert table["red"][5] == pytest.approx(expected["red"], abs=0.1, nan_ok=True)


def test_landmark_scores_need_no_pictures(context, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SHARD", 4)
    data = samples.collect(context, tmp_path, 4, seed=3)
    data.landmarks[2] = np.nan
    monkeypatch.setattr(context.network("generator", "tiny"), "synthesize", None)
    table = scoring.collect(context, tmp_path, data, scoring.load(context, ["landmarks"]))
    for i, points in enumerate(data.landmarks):
        for name, values in table.items():
            if i == 2:
                assert np.isnan(values[i])
            else:
                assert values[i] == face_scores(points)[name]
    assert not list(tmp_path.glob("scores*"))


def test_scores_of_another_scorer_are_not_mixed_in(context, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SHARD", 4)
    data = samples.collect(context, tmp_path, 4, seed=3)
    judges = scoring.load(context, [SCORER])
    scoring.collect(context, tmp_path, data, judges)
    (card,) = tmp_path.glob("scores-*/scorer.json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"weights": {"net": "1"}}))
    with pytest.raises(Refused, match=r"contains scores of.*--cache"):
        scoring.collect(context, tmp_path, data, judges)


def test_scorers_are_checked(context):
    with pytest.raises(UnknownName, match="landmarks"):
        scoring.load(context, ["landmark"])
    with pytest.raises(Refused, match="both give a score 'red'"):
        scoring.load(context, [SCORER, SCORER.replace("Colours", "Other")])


def test_samples_without_a_score_are_left_out():
    w = np.random.default_rng(0).normal(size=(100, 512))
    table = {"a": w[:, 0].copy(), "b": w[:, 1].copy(), "c": np.full(100, np.nan)}
    table["a"][:10] = np.nan
    table["b"][85:] = np.nan
    conditions = {"a": ("b", "given")}
    given = {"given": np.eye(512)[3]}
    fits, found = direction_sets.fit_scores(w, table, ["a"], conditions, given, method="ridge")
    assert found == 75
    assert list(fits) == ["a"]
    assert fits["a"].conditions == ("b", "given")


@pytest.fixture
def fitted(tmp_path, monkeypatch, context):
    """Run `edits fit` on the tiny generator; the arguments, then -> (result, set folder)."""
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(direction_sets, "PROBES", 6)
    made = Context.network

    def network(self, family, name):
        self._networks |= {k: v for k, v in context._networks.items() if k[0] != "generator"}
        return made(self, family, name)

    monkeypatch.setattr(Context, "network", network)

    def run(*words):
        start = ["edits", "fit", "--generator", "tiny", "--samples", "100", "--seed", "1"]
        out = ["--cache", str(tmp_path / "samples"), "--out", str(tmp_path / "sets")]
        return CliRunner().invoke(main, [*start, *out, *words])

    return run, tmp_path / "sets"


def test_the_command_fits_a_published_boundary_of_any_scorer(fitted):
    run, folder = fitted
    words = ("--scorer", SCORER, "--method", "svm", "--ratio", "0.2", "--score", "red")
    result = run(*words, "--name", "colours", "--condition", "blue")
    assert result.exit_code == 0, result.output
    assert "validation accuracy" in result.output
    about = yaml.safe_load((folder / "colours.yaml").read_text())
    assert about["method"] == "interfacegan"
    assert about["scorers"] == {SCORER: "colours"}
    assert "--method svm --ratio 0.2 --condition blue" in about["command"]
    (described,) = about["directions"].values()
    assert 0.4 < described["accuracy"]["validation"] <= 1
    assert described["leaves_alone"] == ["blue"]
    direction = read(f"{folder / 'colours.npz'}#red")
    assert direction.sha256 == described["sha256"]
    assert np.linalg.norm(direction.array) == pytest.approx(described["length"], rel=1e-3)
    calls = Colours.calls
    again = run(*words, "--name", "again", "--condition", "blue")
    assert again.exit_code == 0, again.output
    # Samples and their scores are read; only the effect is measured again.
    assert Colours.calls - calls == 2 * 6
    assert read(f"{folder / 'again.npz'}#red").sha256 == direction.sha256


def test_rows_and_the_unit_of_the_score_are_kept(fitted, monkeypatch):
    run, folder = fitted
    monkeypatch.setattr(direction_sets, "UNITS", {"red": ("one level", (-8.0, 8.0))})
    words = ("--scorer", SCORER, "--method", "ridge", "--score", "red", "--condition", "none")
    result = run(*words, "--rows", "2-17", "--name", "levels")
    assert result.exit_code == 0, result.output
    about = yaml.safe_load((folder / "levels.yaml").read_text())
    assert "--rows 2-17" in about["command"]
    described = about["directions"]["red"]
    assert described["unit"] == f"one level of the {SCORER} score red"
    assert (described["shape"], described["rows"]) == ([18, 512], [2, 17])
    assert described["strengths"] == [-8, 8]
    direction = read(f"{folder / 'levels.npz'}#red").array
    assert direction[2:].any(1).all()
    assert not direction[:2].any()
    # The other score is not fitted, but its change is measured.
    assert described["effect_of_strength_1"].keys() == {"red", "blue"}
    made = Context("cpu", "tiny", models=lambda name: None)
    generator = made.network("generator", "tiny")
    move = generator.expand_direction(torch.from_numpy(direction))
    z = torch.from_numpy(samples.draw(1_000_001, 0)[:6])
    ends = [
        tensor_to_images(
            generator.synthesize(generator.broadcast(generator.map(z, 0.7)) + s * move)
        )
        for s in (4, -4)
    ]
    up, down = (np.mean([picture[..., 0].mean() for picture in end]) for end in ends)
    assert (up - down) / 8 == pytest.approx(1, rel=0.5)


def test_a_picture_is_rendered_once_for_all_scorers(context, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "SHARD", 4)
    data = samples.collect(context, tmp_path, 4, seed=3)
    generator, calls = context.network("generator", "tiny"), []
    render = type(generator).synthesize
    monkeypatch.setattr(
        type(generator), "synthesize", lambda self, ws: calls.append(1) or render(self, ws)
    )
    third = SCORER.replace("Colours", "Green")
    table = scoring.collect(context, tmp_path, data, scoring.load(context, [SCORER, third]))
    assert table.keys() == {"red", "blue", "green"}
    assert len(calls) == 4


def test_a_direction_can_be_the_condition(fitted, tmp_path):
    run, folder = fitted
    array = np.random.default_rng(2).normal(size=512).astype(np.float32)
    np.save(tmp_path / "other.npy", array)
    words = ("--scorer", SCORER, "--method", "ridge", "--score", "red", "--name", "one")
    result = run(*words, "--condition", str(tmp_path / "other.npy"))
    assert result.exit_code == 0, result.output
    found = read(str(folder / "one.npz")).array
    assert abs(found @ array) < 1e-4 * np.linalg.norm(found) * np.linalg.norm(array)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--score", "green"], "choose from blue, red"),
        (["--condition", "green"], "it is neither a score of the scorers nor a direction"),
        (["--method", "svm", "--ratio", "0.001"], "use 2000 or more"),
        (["--scorer", "nobody"], "unknown scorer 'nobody'"),
        (["--rows", "3-18"], "not a range of the rows 0-17"),
        (["--rows", f"0-{'9' * 5000}"], "not a range of the rows 0-17"),
    ],
)
def test_mistakes_are_named(fitted, words, said):
    run, folder = fitted
    result = run("--scorer", SCORER, *words)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--score", "smile"], "the shipped sets would lose 'mouth_open'"),
        (["--score", "smile", "--name", "mine"], "the shipped sets would have 'smile' twice"),
    ],
)
def test_shipped_sets_are_not_damaged(context, monkeypatch, words, said):
    monkeypatch.setattr(samples, "collect", None)
    result = CliRunner().invoke(main, ["edits", "fit", "--generator", "tiny", *words])
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "--out" in result.output
