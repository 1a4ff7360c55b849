"""Sweeps: edits of a finished run at many strengths, and the command that goes on with them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import dhr_batch
from dhr_batch.cli import main
from dhr_batch.pipeline.cli import start
from dhr_batch.pipeline.cli.edits import sweep
from dhr_batch.pipeline.planning.command import goes_on
from dhr_batch.pipeline.runs.verify import verify
from dhr_batch.tests.faults import driven
from dhr_batch.tests.pipeline.later import IDS, made


def test_the_command_sweeps_and_goes_on(copy: Path) -> None:
    words = ["edits", "sweep", copy, "--edit", "smile=-1:1:3", "--edit", "yaw=2", "--gpus", "0"]
    out = copy.with_name("copy-sweep")
    with driven.without_ray():
        done = call(*words, "--limit", "3")
        assert "report/index.html" in done.output
        assert call(*words).exit_code == 2, "images were added"
        grown = call(*words, "--extend", "--set", "max_quarantined=0")
    assert grown.exit_code == 0, grown.output
    run = dhr_batch.open(out)
    assert run.ids == IDS
    assert run.plan["fingerprint"]["origin"] == dhr_batch.open(copy).plan["fingerprint"]
    named = [("smile", -1.0), ("smile", 0.0), ("smile", 1.0), ("yaw", 2.0)] * len(IDS)
    assert list(zip(run.edits["edit"], run.edits["strength"], strict=True)) == named
    stages = {"inverted", "refined", "edit:smile:-1", "edit:smile:0", "edit:smile:1", "edit:yaw:2"}
    assert set(run.metrics["stage"]) == stages
    page = (out / "report" / "index.html").read_text("utf-8")
    assert all(name in page for name in [*IDS, "begins at"])
    assert verify(out).problems == []
    for command in ("status", "verify"):
        assert call(command, out).exit_code == 0


def test_a_sweep_in_its_run_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["edits", "sweep", copy, "--edit", "smile=1", "--gpus", "0"]
    for out in (copy, copy / "sweep"):
        done = call(*words, "--out", out)
        assert done.exit_code == 2
        assert "choose a" in done.output
    assert not (copy / "sweep").exists()
    monkeypatch.chdir(copy)
    started = {}
    monkeypatch.setattr(start, "start", lambda **asked: started.update(asked))
    assert call("edits", "sweep", ".", "--edit", "smile=1").exit_code == 0
    assert started["out"] == str(copy.with_name("copy-sweep"))
    assert started["settings"]["dataset"] == str(copy)


def test_the_command_that_goes_on_names_what_differs(source: Path, tmp_path: Path) -> None:
    settings = {"dataset": str(source), "first_stage": "refine", "refine": {"name": "none"}}
    out = made(tmp_path / "out", **settings)
    words = shlex.split(goes_on(dhr_batch.open(out).stored, str(out)))
    named = ["--dataset", str(source), "--gpus", "0", "--from", "refine"]
    assert words == ["dhr-batch", "run", *named, "--set", "refine.name=none", "--out", str(out)]
    again = call(*words[1:], "--dry-run")
    assert again.exit_code == 0, again.output
    assert "3 of 3 shards" in again.output


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize(
    ("texts", "edits"),
    [
        (["smile=-2:2:5"], {"smile": [-2, -1, 0, 1, 2]}),
        (["age.npy=-1,0.5,1"], {"age.npy": [-1, 0.5, 1]}),
        (["smile=-0.3:0.3:7"], {"smile": [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]}),
        (["a=1:2:2,5", "b=1", "a=2,3"], {"a": [1, 2, 5, 3], "b": [1]}),
        (["set.npz#x=y=1"], {"set.npz#x=y": [1]}),
    ],
)
def test_strengths_are_read(texts: list[str], edits: dict[str, list[float]]) -> None:
    found = {e["direction"]: e["strengths"] for e in sweep.parse(tuple(texts))}
    assert found == edits


@pytest.mark.parametrize(
    "text",
    [
        *("smile", "=1", "smile=", "smile=x", "smile=1,", "smile=nan", "smile=1:2"),
        *("smile=1:2:2.5", "smile=1:2:3:4", "smile=0:inf:3"),
    ],
)
def test_other_strengths_are_refused(text: str) -> None:
    done = call("edits", "sweep", "nowhere", "--edit", text)
    assert done.exit_code == 2
    assert f"--edit {text!r}: it is not of the form NAME=STRENGTHS" in done.output


def test_a_range_of_one_strength_is_refused() -> None:
    done = call("edits", "sweep", "nowhere", "--edit", "smile=1:2:1")
    assert done.exit_code == 2
    assert "--edit 'smile=1:2:1': a range FIRST:LAST:COUNT has a count of at least 2" in done.output
