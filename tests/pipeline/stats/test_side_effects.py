"""Side effects of edits on metrics with known changes."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from dhr_batch.pipeline.bench import board
from dhr_batch.pipeline.bench.side_effects import columns
from dhr_batch.pipeline.stats import side_effects
from dhr_batch.pipeline.stats.curves import curves_of
from dhr_batch.pipeline.stats.equal_effect import equal_effect
from dhr_batch.stages.record import edit_stage

AGES = {"a": 30.0, "b": 50.0, "c": 70.0}


def metrics(gain: float = 0.1) -> pd.DataFrame:
    """Smiles of strength s have the effect `gain s` and change the age by 4 s, or -4 s for `c`."""
    rows = []
    for image_id, age in AGES.items():
        ages = -4 if image_id == "c" else 4
        for stage, s in [("source", 0), ("refined", 0)] + [
            (edit_stage("smile", s), s) for s in (-2, -1, 1, 2)
        ]:
            found = {"score_smile": 0.4 + gain * s, "score_age": age + ages * s}
            found |= {"score_happy": 0.5 + s / 5, "score_yaw": 0.0, "score_yaw_degrees": 0.0}
            found |= {} if stage == "source" else {"identity_dlib_distance": abs(s) / 10}
            rows += [(image_id, stage, name, value) for name, value in found.items()]
    return pd.DataFrame(rows, columns=["image_id", "stage", "metric", "value"])


def test_changes_at_one_effect():
    down, up = side_effects.side_effects(metrics(), ["identity_dlib_distance"])
    assert (down.effect, up.effect) == (pytest.approx(-0.2), pytest.approx(0.2))
    assert up.strength.value == pytest.approx(2)
    assert up.strength.n == 3
    assert set(up.changes) == {"score_age", "score_yaw_degrees"}
    assert up.changes["score_age"].value == pytest.approx(8 / 3)
    assert up.sizes["score_age"].value == pytest.approx(8)
    assert down.changes["score_age"].value == pytest.approx(-8 / 3)
    assert up.judged is not None
    assert up.judged.value == pytest.approx(0.4)
    assert up.costs["identity_dlib_distance"].value == pytest.approx(0.2)


def test_the_effect_is_one_that_most_images_reach():
    found = metrics()
    weak = (found["image_id"] == "c") & (found["metric"] == "score_smile")
    found.loc[weak, "value"] = 0.4
    few = side_effects.side_effects(found, [])
    assert few == []
    two = metrics()[lambda rows: rows["image_id"] != "c"]
    more = [two.replace({"a": "d", "b": "e"}), found.replace("c", "f")]
    _, up = side_effects.side_effects(pd.concat([two, *more]).drop_duplicates(), [])
    assert up.effect == pytest.approx(0.2)
    assert up.strength.n == 4


def test_without_another_judge_or_scores_of_the_source():
    found = metrics()
    _, up = side_effects.side_effects(found[found["metric"] != "score_happy"], [])
    assert up.judged is None
    blind = found[~((found["stage"] == "source") & (found["metric"] == "score_age"))]
    _, up = side_effects.side_effects(blind, [])
    assert "score_age" not in up.changes
    # A score that only the source of one photograph lacks has no change in that photograph.
    (one,) = found.index[
        (found["stage"] == "source") & (found["metric"] == "score_age") & (found["image_id"] == "b")
    ]
    _, up = side_effects.side_effects(found.drop(one), [])
    assert (up.changes["score_age"].value, up.changes["score_age"].n) == (pytest.approx(0), 2)
    assert side_effects.side_effects(found[found["stage"] != "source"], []) == []


def test_methods_at_equal_effect():
    """`strong` needs half the strength of `weak`, and changes the age half as much."""
    tables = {"weak": metrics(), "strong": metrics(gain=0.2)}
    sources = side_effects.before(tables["weak"])
    methods = {m: curves_of(frame, "smile", sources) for m, frame in tables.items()}
    full = equal_effect(methods)
    found = {key: (heading, values) for key, heading, values in columns("smile", full, sources)}
    assert list(found) == ["smile@judged_happy", "smile@side_age", "smile@side_yaw_degrees"]
    heading, ages = found["smile@side_age"]
    assert heading == "change of age [years]"
    assert ages["weak"] == pytest.approx(dict.fromkeys(AGES, 8))
    assert ages["strong"] == pytest.approx(dict.fromkeys(AGES, 4))
    _, judged = found["smile@judged_happy"]
    assert judged["strong"] == pytest.approx(dict.fromkeys(AGES, 0.2))


def test_a_benchmark_has_a_table_of_them():
    tables = {"weak": metrics(), "strong": metrics(gain=0.2)}
    compared = SimpleNamespace(
        methods=[SimpleNamespace(name=name) for name in tables],
        metrics=lambda method: tables[method.name],
        same_masks=True,
    )
    values, made = {name: {} for name in tables}, []
    (edited,) = board._edits(compared, values, made)
    assert edited.measured
    (sheet,) = {c.sheet for c in made if "side" in c.key or "judged" in c.key}
    assert sheet == "Edit smile: side effects at equal effect"
    titles = {c.key: (c.title, c.better) for c in made if c.sheet == sheet}
    assert titles["smile@judged_happy"] == ("effect by happy", "")
    assert titles["smile@side_yaw_degrees"] == ("change of yaw degrees [°]", "")
    assert values["strong"]["smile@side_age"] == pytest.approx(dict.fromkeys(AGES, 4))
