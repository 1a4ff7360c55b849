"""What a later start may change: nothing, unless it says --extend or --fresh."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dhr_batch import cli
from dhr_batch.pipeline.cli import start
from dhr_batch.pipeline.errors import Refused
from dhr_batch.pipeline.planning import resume
from dhr_batch.pipeline.planning.plan import Plan
from dhr_batch.pipeline.planning.prepare import prepare
from dhr_batch.pipeline.planning.request import Request
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.records.manifests import Manifest
from dhr_batch.pipeline.runs.reopening import reopen
from dhr_batch.stages.record import required


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name in ("b/2.png", "a.jpg", "c.webp"):
        (folder / name).write_bytes(name.encode())
    return folder


def made(folder: Path, *sets: str, **settings: Any) -> Plan:
    settings = {"dataset": str(folder), "preset": "tiny", "gpus": 0, **settings}
    return prepare(Request(settings=settings, sets=sets))


@pytest.fixture
def run(photographs: Path, tmp_path: Path) -> Iterator[RunFolder]:
    """A run that was started, and has committed its first shard of two; it is held."""
    run = RunFolder(tmp_path / "out")
    run.lock()
    run.write_plan(made(photographs, "shard_size=2").stored())
    run.commit(0, Manifest("00000.1.x", ok=2), 2)
    yield run
    run.unlock()


def ids(plan: Plan) -> list[list[str]]:
    return [[item.image_id for item in shard.items] for shard in plan.shards]


def refused(run: RunFolder, plan: Plan, extend: bool = False) -> str:
    with pytest.raises(Refused) as caught:
        resume.continued(run, "out", plan, extend)
    return str(caught.value)


def test_a_renamed_folder_other_files_and_run_settings_change_nothing(
    photographs: Path, run: RunFolder
) -> None:
    moved = photographs.rename(photographs.with_name("elsewhere"))
    (moved / "notes.txt").write_text("no image")
    plan = made(moved, "shard_size=2", "workers=7", "max_quarantined=0.5")
    assert resume.continued(run, "out", plan).shards == plan.shards


def test_changed_settings_are_named(photographs: Path, run: RunFolder) -> None:
    said = refused(
        run, made(photographs, "shard_size=3", "embed.steps=3", "precision=tf32", seed=5)
    )
    assert "precision: fp32 -> tf32" in said
    assert "embed.steps: 2 -> 3" in said
    assert "seed: 0 -> 5" in said
    assert "shard_size: 2 -> 3" in said
    assert "images" not in said.partition("changed:")[2].partition("\nUse")[0]


def test_changed_code_weights_and_directions_are_named(photographs: Path, run: RunFolder) -> None:
    stored = run.plan()
    assert stored is not None
    before = stored.fingerprint
    name = next(iter(before.models))
    models = {**before.models, name: "0" * 16, "a-model-of-before": "1" * 16}
    before = replace(before, models=models, version="0.0.9", code="3")
    before = replace(before, directions={"smile": "2" * 16})
    run.replace_plan(replace(stored, fingerprint=before))
    said = refused(run, made(photographs, "shard_size=2"))
    assert f"models.{name}: {'0' * 16} -> " in said
    assert f"directions.smile: {'2' * 16} -> " in said
    assert "version: 0.0.9 -> " in said
    assert "code: 3 -> " in said
    assert "a-model-of-before" not in said


def test_a_plan_of_an_earlier_layout_is_refused(photographs: Path, run: RunFolder) -> None:
    stored = run.plan()
    assert stored is not None
    run.replace_plan(replace(stored, schema=1, contents=None))
    assert "schema: 1 -> 2" in refused(run, made(photographs))


def test_images_that_are_gone_or_changed_are_named_even_with_extend(
    photographs: Path, run: RunFolder
) -> None:
    (photographs / "a.jpg").unlink()
    (photographs / "c.webp").write_bytes(b"another file")
    said = refused(run, made(photographs, "shard_size=2"), extend=True)
    assert "1 missing: a.jpg" in said
    assert "1 with different content: c.webp (6 -> 12 bytes)" in said
    assert "b/2.png" not in said


def test_a_limit_that_leaves_images_out_is_told_so(photographs: Path, run: RunFolder) -> None:
    said = refused(run, made(photographs, "shard_size=2", limit=2))
    assert "1 missing, or beyond --limit 2: c.webp" in said


def test_new_images_are_refused_without_extend(photographs: Path, run: RunFolder) -> None:
    (photographs / "0.png").write_bytes(b"new")
    said = refused(run, made(photographs, "shard_size=2"))
    assert "1 added: 0.png; --extend" in said


def test_extend_puts_new_images_into_shards_behind_the_others(
    photographs: Path, run: RunFolder
) -> None:
    before = run.plan()
    assert before is not None
    for name in ("0.png", "b/1.png", "z.png"):
        (photographs / name).write_bytes(b"new")
    # The size of shards is not given this time; the stored one goes on.
    longer = resume.continued(run, "out", made(photographs), extend=True)
    old = [["a.jpg", "b/2.png"], ["c.webp"]]
    assert ids(longer) == [*old, ["0.png", "b/1.png"], ["z.png"]]
    assert [shard.index for shard in longer.shards] == [0, 1, 2, 3]
    run.replace_plan(resume.extended(before, longer))
    after = run.plan()
    assert after is not None
    assert replace(after, shards=(), contents=()) == replace(before, shards=(), contents=())
    assert after.shards[:2] == before.shards == old
    assert required(after.contents)[:2] == before.contents
    # Without the flag the longer plan is simply the plan now.
    assert ids(resume.continued(run, "out", made(photographs))) == ids(longer)
    assert list(run.committed()) == [0]


def test_etags_count_only_where_both_sides_have_one(photographs: Path, run: RunFolder) -> None:
    stored = run.plan()
    assert stored is not None
    run.replace_plan(replace(stored, contents=[["5:aa", 7], ["6:bb"]]))
    plan = made(photographs, "shard_size=2")
    assert resume.continued(run, "out", plan).images == 3
    first = plan.shards[0]
    items = (first.items[0]._replace(etag="cc"), *first.items[1:])
    shard = type(first)(0, items)
    other = type(plan)(plan.dataset, plan.config, (shard, *plan.shards[1:]), True, plan.directions)
    assert "a.jpg (etag)" in refused(run, other)


def test_fresh_needs_a_yes_that_names_folder_and_images(run: RunFolder) -> None:
    with pytest.raises(Refused, match=r"run in out with 2 committed images.*--yes"):
        resume.start_over(run, "out", confirmed=False)
    assert run.plan() is not None
    out = Path(run.storage.place)
    (out / "images").mkdir()
    (out / "images" / "part-00000.parquet").write_bytes(b"old")
    (out / "mine.txt").write_text("not of the run")
    resume.start_over(run, "out", confirmed=True)
    assert run.plan() is None
    assert run.committed() == {}
    assert not (out / "images").exists()
    assert (out / "mine.txt").exists()
    resume.start_over(run, "out", confirmed=False)


def test_finished_shards_without_a_plan_are_not_taken_for_those_of_this_start(
    photographs: Path, run: RunFolder
) -> None:
    run.storage.replace("_state/status.json", b"{}")
    run.storage.delete("plan.json")
    assert "1 finished shards but no plan.json" in refused(run, made(photographs))
    resume.start_over(run, "out", confirmed=True)
    assert resume.continued(run, "out", made(photographs)).images == 3
    assert run.storage.sizes().keys() <= {"_state/lease"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fresh"], "confirm with --yes"),
        (["--fresh", "--extend"], "give only one"),
        ([], "1 added: 0.png; --extend"),
    ],
)
def test_refusals_on_the_command_line_leave_everything(
    photographs: Path, run: RunFolder, words: list[str], said: str
) -> None:
    (photographs / "0.png").write_bytes(b"new")
    run.unlock()
    options = ["--dataset", str(photographs), "--preset", "tiny", "--gpus", "0"]
    place = ["--out", run.storage.place, "--set", "shard_size=2"]
    done = CliRunner().invoke(cli.main, ["run", *options, *place, *words])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert list(run.committed()) == [0]
    assert run.plan() is not None


def test_the_question_can_be_declined(
    photographs: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "has_terminal", lambda: True)
    run.unlock()
    options = ["--dataset", str(photographs), "--preset", "tiny", "--gpus", "0", "--fresh"]
    done = CliRunner().invoke(cli.main, ["run", *options, "--out", run.storage.place], input="n\n")
    assert done.exit_code == 2
    assert f"Delete the run in {run.storage.place} with 2 committed images" in done.output
    assert "nothing was deleted" in done.output
    assert run.plan() is not None


def test_an_image_that_was_given_back_may_have_changed_and_is_then_known_again(
    photographs: Path, run: RunFolder
) -> None:
    reopen(run, {0: {"a.jpg"}})
    (photographs / "a.jpg").write_bytes(b"repaired")
    plan = resume.continued(run, "out", made(photographs, "shard_size=2"))
    stored = run.plan()
    assert stored is not None
    assert resume.has_open_marks(stored)
    after = resume.extended(stored, plan)
    sizes = [[str(mark).partition("@")[0] for mark in marks] for marks in required(after.contents)]
    assert sizes == [["8", "7"], ["6"]]
    assert not resume.has_open_marks(after)
    (photographs / "b" / "2.png").write_bytes(b"changed as well")
    assert "1 with different content: b/2.png" in refused(run, made(photographs, "shard_size=2"))
