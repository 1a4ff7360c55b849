"""What a run is expected to take, from the table of measured costs."""

from __future__ import annotations

from typing import Any

import pytest

from dhr_batch.benchmarks import costs as benchmark
from dhr_batch.pipeline.planning import config, costs, layers


def made(*sets: str, gpus: int = 0) -> config.Config:
    given = [{"dataset": "portraits"}, config.preset("default"), layers.assignments(sets)]
    return config.resolve(config.build(given), gpus, 5)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine is as fast as that of the table."""
    monkeypatch.setattr(costs, "calibrate", lambda: costs._table()["test_seconds"])


def test_the_table_has_what_the_benchmark_measures() -> None:
    for generator in costs._table()["generators"].values():
        assert {k: {*v} for k, v in generator["stages"].items()} == {
            family: {*names} for family, names in benchmark.MEMBERS.items()
        }
        assert generator["facts"].keys() == {"resolution", "rows", "weights", "feature"}


def test_costs_follow_steps_pictures_threads_and_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    default = costs.expected(made("workers=1"))
    assert default.known
    assert [*default.seconds] == ["align", "embed", "segment", "refine", "edit", "measure"]
    fixed, each = costs._table()["generators"]["mobilestylegan-256"]["stages"]["refine"]["dhr"]
    assert default.seconds["refine"] == pytest.approx(fixed + 38 * each)
    more = costs.expected(made("refine.steps=76", "edit.edits=[]")).seconds
    assert more["refine"] == pytest.approx(fixed + 76 * each)
    assert more["edit"] < default.seconds["edit"]
    assert more["embed"] == default.seconds["embed"]
    two = costs.expected(made("threads=2")).seconds
    assert two["refine"] == pytest.approx(default.seconds["refine"] / 2)
    monkeypatch.setattr(costs, "calibrate", lambda: 3 * costs._table()["test_seconds"])
    slow = costs.expected(made()).seconds
    assert slow == {k: pytest.approx(3 * v) for k, v in default.seconds.items()}


@pytest.mark.parametrize(
    ("sets", "gpus", "why"),
    [
        (["generator=tiny"], 0, "no costs were measured with the generator tiny"),
        (["refine.name=sam"], 0, "refine.name=sam"),
        (["embed.perceptual=lpips_vgg"], 0, "embed.name=w+ with these networks"),
        ([], 1, "on CPUs only"),
    ],
)
def test_what_was_not_measured_is_said_to_be_unknown(sets: Any, gpus: int, why: str) -> None:
    settings = made(*sets, gpus=gpus)
    found = costs.expected(settings)
    assert not found.known
    assert why in found.why
    # The ratios of stages are expected, so that a run can count the first image in progress.
    assert all(value > 0 for value in found.seconds.values())
    expected = costs.expectation(settings, 5, 5)
    assert expected.seconds is None
    assert f"time       unknown before the first image: {found.why}" in expected.lines()
    assert (expected.bytes is None) == ("tiny" in why)


def test_an_expectation_is_of_whole_rounds_of_workers() -> None:
    one = sum(costs.expected(made()).seconds.values())
    found = costs.expectation(made("workers=2", "shard_size=1"), 5, 5)
    assert found.seconds == pytest.approx(3 * one, rel=0.02)
    time, disk = found.lines()
    assert time.startswith("time       about ")
    assert "an estimate" in time
    assert "the first image corrects it" in time
    assert disk.startswith("disk       about ")
