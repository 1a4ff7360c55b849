"""Fits on synthetic latents with planted scores."""

import numpy as np
import pytest

from dhr_batch.fitting import direction_sets
from dhr_batch.fitting.directions import (
    METHODS,
    Fit,
    boundary,
    clip_outliers,
    cross_validate,
    fit,
)
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
        # Strength 1 of both changes the linear model by one deviation.
        wanted = loose[name].array @ loose[name].array
        assert tight[name].array @ loose[name].array == pytest.approx(wanted, rel=1e-4)


def test_the_published_boundary_learns_from_the_extremes(planted):
    """Against the published procedure, written out for this split."""
    from sklearn.svm import SVC

    w, scores, a, _ = planted
    score = scores["first"]
    found = boundary(w, score, ratio=0.1, seed=4)
    order = np.argsort(score)
    source = np.random.default_rng(4)
    low, high = source.permutation(order[:60]), source.permutation(order[-60:])
    machine = SVC(kernel="linear", C=1.0)
    machine.fit(w[[*high[:42], *low[:42]]], [1] * 42 + [0] * 42)
    assert found.trained == 84
    normal = machine.coef_[0] / np.linalg.norm(machine.coef_[0])
    assert np.allclose(found.normal, normal, atol=1e-9)
    right = [machine.predict(w[[i]])[0] == label for i, label in _labelled(high, low)]
    assert found.validation == pytest.approx(np.mean(right))
    middle = (score.min() + score.max()) / 2
    rest = order[60:-60]
    guessed = machine.predict(w[rest])
    assert found.remaining == pytest.approx(np.mean(guessed == (score[rest] >= middle)))
    assert np.linalg.norm(found.normal) == pytest.approx(1)
    assert cosine(found.normal, a) > 0.5


def _labelled(high, low):
    return [(i, 1) for i in high[42:]] + [(i, 0) for i in low[42:]]


def test_the_boundary_of_all_samples_leaves_none(planted):
    w, scores, *_ = planted
    found = boundary(w, scores["first"], ratio=0.5)
    assert found.trained == 420
    assert np.isnan(found.remaining)
    assert found.validation > 0.8


def test_too_small_a_share_is_refused(planted):
    w, scores, *_ = planted
    with pytest.raises(Refused, match=r"600 samples.*0\.002.*use 1000 or more"):
        boundary(w, scores["first"], ratio=0.002)


def test_the_published_method_is_chosen_and_conditioned(planted):
    w, scores, a, _ = planted
    fits = fit(w, scores, conditions={}, method="svm", ratio=0.2, seed=1)
    assert fits["first"].method == "interfacegan"
    assert set(fits["first"].compared) == {"interfacegan"}
    assert cosine(fits["first"].array, a) > 0.7
    unit = boundary(w - w.mean(0), scores["first"], 0.2, 1).normal
    assert cosine(fits["first"].array, unit) == pytest.approx(1, abs=1e-6)
    assert fits["first"].accuracy.keys() == {"validation", "remaining"}
    # Gram-Schmidt against the normal of another score, as published.
    tight = fit(w, scores, conditions={"first": ("second",)}, method="svm", ratio=0.2, seed=1)
    other = fits["second"].array / np.linalg.norm(fits["second"].array)
    expected = unit - (unit @ other) * other
    assert cosine(tight["first"].array, expected) == pytest.approx(1, abs=1e-6)
    assert abs(cosine(tight["first"].array, other)) < 1e-6


def test_directions_are_conditions_as_well(planted):
    w, scores, _, b = planted
    fits = fit(
        w,
        scores,
        conditions={"first": ("given", "second")},
        method="ridge",
        others={"given": b.astype(np.float32)},
        names=["first"],
    )
    assert list(fits) == ["first"]
    assert fits["first"].method.startswith("ridge")
    assert all(name.startswith("ridge") for name in fits["first"].compared)
    assert abs(cosine(fits["first"].array, b)) < 1e-5
    with pytest.raises(Refused, match="nothing of it is left"):
        fit(
            w,
            scores,
            conditions={"first": tuple(map(str, range(WIDTH)))},
            others={str(i): np.eye(WIDTH)[i] for i in range(WIDTH)},
        )


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


def test_the_accuracy_is_in_the_description():
    array = np.full(512, 0.5, np.float32)
    accuracy = {"validation": 0.96, "remaining": np.nan}
    fitted = Fit("beard", array, "interfacegan", 0.5, 0.3, {}, 1.0, 0.2, accuracy=accuracy)
    described = direction_sets.describe(fitted, "age-gender")
    assert described["accuracy"] == {"validation": 0.96}
    assert described["length"] == pytest.approx(0.5 * 512**0.5, abs=1e-3)
    assert described["unit"] == "one standard deviation (0.2) of the age-gender score beard"


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
