"""Outputs and datasets that lie in each other: nothing is written to the folder of photographs."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.bench import run as bench
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import prepare
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.storage import ownership
from dhr_batch.pipeline.storage.connect import connect
from dhr_batch.pipeline.storage.ownership import RUN, Owned
from dhr_batch.tests.pipeline import benched
from dhr_batch.tests.pipeline.foreign import MINE, dhr, files, put


@pytest.fixture
def project(tmp_path: Path, small_run: Any) -> Path:
    """What a user has: photographs, and other folders that are named as those of a run."""
    folder = tmp_path / "proj"
    shutil.copytree(small_run.photographs, folder / "images")
    put(folder, {"masks/a.png": MINE, "report/index.html": MINE, "README.md": MINE})
    return folder


@pytest.mark.parametrize("words", [[], ["--fresh", "--yes"], ["--fresh", "--yes", "--dry-run"]])
@pytest.mark.parametrize("dataset", ["proj/images", "small.yaml"])
def test_a_folder_of_photographs_and_other_work_is_left_as_it_is(
    project: Path, small_run: Any, words: list[str], dataset: str, tmp_path: Path
) -> None:
    before = files(project)
    place = tmp_path / dataset if "/" in dataset else small_run.out.parent / dataset
    done = dhr("run", "--dataset", place, "--preset", "tiny", "--gpus", 0, "--out", project, *words)
    assert done.exit_code == 2, done.output
    assert str(project) in done.output
    assert (str(place) if "/" in dataset else "README.md, images/, masks/") in done.output
    assert files(project) == before


def test_from_the_folder_of_the_photographs_a_command_is_printed_that_works(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "images")
    before = files(project)
    words = ["run", "--dataset", ".", "--preset", "tiny", "--gpus", "0", "--set", "shard_size=2"]
    done = dhr(*words, "--dry-run")
    assert done.exit_code == 2, done.output
    assert str(project / "images") in done.output
    printed = shlex.split(done.output.splitlines()[-1])
    assert printed[: len(words) + 1] == ["dhr-batch", *words]
    again = dhr(*printed[1:])
    assert again.exit_code == 0, again.output
    assert files(project) == before


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


NESTED: dict[str, Callable[[Path], tuple[object, object]]] = {
    "out in dataset": lambda p: (p / "proj/images", p / "proj/images/runs/one"),
    "out is dataset": lambda p: (p / "proj/images", p / "proj/images"),
    "dataset in out": lambda p: (p / "proj/images", p / "proj"),
    "dataset by a link": lambda p: (link(p / "l", p / "proj/images"), p / "proj/images/one"),
    "out by a link": lambda p: (p / "proj/images", link(p / "l", p / "proj/images") / "one"),
    "relative": lambda p: ("proj/images", "proj/masks/../images/one"),
    "the current folder": lambda p: ("proj/images", "."),
    "dataset is the current folder": lambda p: (".", "one"),
    "a linked folder in the dataset": lambda p: (
        link(p / "proj/masks/more", p / "proj/images").parent,
        p / "proj/images/one",
    ),
}


@pytest.mark.parametrize("case", NESTED)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_an_output_and_a_dataset_are_not_in_each_other(
    project: Path, tmp_path: Path, case: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset, out = NESTED[case](tmp_path)
    before = files(tmp_path)
    words = ["--dataset", dataset, "--preset", "tiny", "--gpus", "0", "--out", out]
    done = dhr(command, *words)
    assert done.exit_code == 2, done.output
    assert re.search(r"lies in (the dataset )?/", done.output) or f"lies in {out}" in done.output
    assert str(out) in done.output
    assert files(tmp_path) == before


def test_places_in_object_stores_are_compared_by_their_parts(tmp_path: Path) -> None:
    def refused(out: str, place: str) -> bool:
        try:
            ownership.require_apart(connect(out), [place])
        except Refused as error:
            return place in str(error) and out in str(error)
        return False

    assert refused("s3://b/photos/run", "s3://b/photos/")
    assert refused("s3://b/photos/run", "s3a://b/photos")
    assert refused("s3://b", "s3://b/photos")
    assert not refused("s3://b/photos-run", "s3://b/photos")
    assert not refused("s3://c/photos/run", "s3://b/photos")
    assert not refused(str(tmp_path), "s3://b/photos")


def test_below_the_dataset_of_a_run_nothing_is_made_of_it(
    small_run: Any, project: Path, tmp_path: Path
) -> None:
    place = connect(small_run.copy(tmp_path / "run"))
    Owned(place, RUN).claim(dataset=str(project / "images"))
    inside, before = project / "images" / "new", files(project)
    matrix = benched.tiny(project / "images")
    for words in (
        ("export", place.place, "--out", inside),
        ("render", place.place, "--all", "--out", inside),
        ("report", place.place, "--out", inside),
    ):
        done = dhr(*words)
        assert done.exit_code == 2, (words, done.output, done.exception)
        assert f"{inside}: it lies in the dataset {project / 'images'}" in done.output
    with pytest.raises(Refused, match=r"new: it lies in the dataset .*images"):
        bench.plan(matrix, inside, machine=benched.MACHINE, random_weights=True)
    with pytest.raises(Refused, match=r"the dataset .*images: it lies in .*proj"):
        bench.plan(matrix, project / "images" / "..", machine=benched.MACHINE, random_weights=True)
    assert files(project) == before


def test_a_run_knows_where_its_photographs_lie(small_run: Any) -> None:
    place = connect(small_run.out)
    assert Owned(place, RUN).about["dataset"] == str(small_run.photographs)
    run = RunFolder(place)
    plan = run.plan()
    assert plan is not None
    assert list(prepare.origin.inputs(place, plan)) == [str(small_run.photographs)]


def test_a_refused_start_leaves_a_run_as_it_is(small_run: Any, project: Path) -> None:
    run = small_run.copy(project.parent / "run")
    before = files(run)
    words = ("--dataset", project / "images", "--preset", "tiny", "--gpus", 0, "--out", run)
    refused = dhr("run", *words)
    assert refused.exit_code == 2, refused.output
    assert "it holds a run with other settings or images" in refused.output
    after = files(run)
    assert after | {"_state/lease": before["_state/lease"]} == before
