"""Fits on synthetic latents with planted scores."""

import numpy as np
import pytest

from dhr_batch.fitting import direction_sets
from dhr_batch.fitting.directions import METHODS, Fit, clip_outliers, cross_validate, fit
from dhr_batch.pipeline.errors import Refused
from dhr_batch.stages.edit import direction_files

# Narrower than a real latent: the models are the same and the tests take seconds.
WIDTH = 64


@pytest.fixture(scope="module")
def planted():
    """Latents with an uneven spread, and two scores of which the second leans on the first."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(600, WIDTH)) * np.geomspace(2, 0.3, WIDTH)[rng.permutation(WIDTH)]
    a, b = (v / np.linalg.norm(v) for v in rng.normal(size=(2, WIDTH)))
    b = (b + 0.5 * a) / np.linalg.norm(b + 0.5 * a)
    first = w @ a
    second = w @ b
    scores = {
        "first": 3 + first / first.std() * 0.7 + 0.1 * rng.normal(size=600),
        "second": second / second.std() + 0.15 * rng.normal(size=600),
    }
    return w.astype(np.float32), scores, a, b


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_planted_directions_are_recovered(planted):
    w, scores, a, b = planted
    fits = fit(w, scores, conditions={})
    assert cosine(fits["first"].array, a) > 0.9
    assert cosine(fits["second"].array, b) > 0.9
    assert fits["first"].r2 > 0.8
    assert {f.method for f in fits.values()} == {fits["first"].method}
    assert fits["first"].correlation == fits["first"].compared[fits["first"].method]
    assert set(fits["first"].compared) == set(METHODS)
    assert fits["first"].correlation > max(fits["first"].compared[m] for m in ("logistic", "svm"))


def test_strength_one_is_one_deviation(planted):
    w, scores, a, _ = planted
    fitted = fit(w, scores, conditions={})["first"]
    moved = fitted.array @ a * (0.7 / (w @ a).std())
    assert moved == pytest.approx(fitted.std, rel=0.15)
    assert fitted.std == pytest.approx(scores["first"].std(), rel=0.02)


def test_conditioned_directions_leave_each_other_alone(planted):
    w, scores, a, b = planted
    loose, tight = fit(w, scores, conditions={}), fit(w, scores)
    own = {"first": a, "second": b}
    for name, other in (("first", "second"), ("second", "first")):
        before = loose[name].array @ own[other]
        after = tight[name].array @ own[other]
        assert abs(after) < 0.25 * abs(before)
        assert tight[name].array @ own[name] > 0
        assert tight[name].conditions == (other,)
        assert tight[name].kept < loose[name].kept == 1


def test_noise_is_not_predicted(planted):
    w = planted[0]
    noise = np.random.default_rng(9).normal(size=len(w))
    for model in METHODS.values():
        correlation, r2 = cross_validate(model, w, noise)
        assert abs(correlation) < 0.15
        assert r2 < 0.1


def test_bad_scores_are_refused(planted):
    w = planted[0]
    with pytest.raises(Refused, match="'flat': it is the same"):
        fit(w, {"flat": np.ones(len(w))})
    with pytest.raises(Refused, match="too few"):
        fit(w[:20], {"s": np.arange(20.0)})


def test_outliers_are_clipped():
    score = np.append(np.linspace(0, 1, 999), 1e6)
    assert clip_outliers(score).max() < 1.01


def test_a_written_set_is_read_back(tmp_path, monkeypatch):
    array = np.random.default_rng(1).normal(size=512).astype(np.float32)
    fitted = Fit("smile", array, "ridge", 0.8, 0.6, {"ridge": 0.8}, 1.0, 0.2)
    described = direction_sets.describe(fitted)
    direction_sets.write_set(tmp_path, "set", {"smile": array}, {"smile": described}, {"seed": 0})
    monkeypatch.setattr(direction_files, "sets_folder", lambda: tmp_path)
    direction = direction_files.resolve("smile")
    assert np.array_equal(direction.array, array)
    assert "standard deviation" in direction.unit
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set.npz", "set.yaml"]
