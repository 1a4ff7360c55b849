"""A run is finished by the code that began it, or says that it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dhr_batch.pipeline.errors import CommandError, Refused
from dhr_batch.pipeline.planning import code, resume
from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.worker.settings import Settings
from dhr_batch.pipeline.worker.worker import Worker
from dhr_batch.tests.faults import harness

READERS = (
    "pipeline/tables/codec.py",
    "pipeline/tables/records.py",
    "pipeline/planning/earlier_run.py",
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of a few files in the place of this one."""
    for name in ("stages/align.py", "stages/networks/tiny.py", *READERS):
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    monkeypatch.setattr(code, "_PACKAGE", tmp_path / "package")
    return tmp_path / "package"


def made(tmp_path: Path, **settings: object) -> Plan:
    items = harness.photographs(tmp_path / "in", ["a.png", "b.png"])
    return harness.make(items, shard_size=1, **settings)


@pytest.mark.parametrize(
    "edited", ["stages/align.py", "stages/networks/tiny.py", "stages/new.py", *READERS]
)
def test_edited_and_new_files_count(package: Path, tmp_path: Path, edited: str) -> None:
    config = made(tmp_path).config
    before = code.digest(config)
    (package / edited).write_text("RATE = 2\n")
    assert code.digest(config) != before


def test_content_that_moves_between_files_counts(package: Path, tmp_path: Path) -> None:
    config = made(tmp_path).config
    before = code.digest(config)
    (package / "stages" / "align.py").rename(package / "stages" / "other.py")
    assert code.digest(config) != before


def test_what_no_row_depends_on_does_not_count(package: Path, tmp_path: Path) -> None:
    config = made(tmp_path).config
    before = code.digest(config)
    (package / "pipeline" / "driver.py").write_text("")
    (package / "stages" / "align.cpython-311.pyc").write_bytes(b"compiled")
    assert code.digest(config) == before


def test_a_stage_of_another_package_counts_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "refine_of_mine.py"
    mine.write_text("from dhr_batch.stages.refine.base import NoRefinement as Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    used = made(tmp_path, refine={"name": "refine_of_mine:Mine"}).config
    other = made(tmp_path).config
    before = code.digest(used), code.digest(other)
    mine.write_text(mine.read_text() + "# edited\n")
    assert code.digest(used) != before[0]
    assert code.digest(other) == before[1]


def test_edited_stages_are_refused_by_name_and_the_way_out_is_one(
    package: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = RunFolder(out)
    run.write_plan(made(tmp_path).stored())
    before = code.digest(made(tmp_path).config)
    (package / "stages" / "align.py").write_text("RATE = 2\n")
    edited = made(tmp_path)
    now = code.digest(edited.config)
    with pytest.raises(Refused, match=f"code: {before} -> {now} .*into plan.json") as refused:
        resume.continued(run, out, edited)
    assert str(refused.value).count(" -> ") == 1
    text = (out / "plan.json").read_text()
    assert text.count(before) == 1
    (out / "plan.json").write_text(text.replace(before, now))
    with pytest.raises(Refused, match="changed on purpose, delete its first key 'sha256'"):
        resume.continued(RunFolder(out), out, edited)
    changed = json.loads(text.replace(before, now))
    assert changed.pop("sha256")
    (out / "plan.json").write_text(json.dumps(changed))
    assert resume.continued(RunFolder(out), out, edited).shards == edited.shards
    assert json.loads((out / "plan.json").read_text())["fingerprint"]["code"] == now


def test_a_worker_with_other_stages_than_the_driver_does_not_start(tmp_path: Path) -> None:
    config = made(tmp_path).config
    out = str(tmp_path / "out")
    Worker(Settings(config, False, "", "cpu", out, code.digest(config))).setup()
    with pytest.raises(CommandError, match="differs from the source that the run was started with"):
        Worker(Settings(config, False, "", "cpu", out, "0" * 16)).setup()
