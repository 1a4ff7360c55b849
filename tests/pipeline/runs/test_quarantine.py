"""`dhr-batch quarantine`: listing, and images that are repaired and tried again, with kills."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dhr_batch.cli import main
from dhr_batch.pipeline.planning.command import goes_on
from dhr_batch.pipeline.runs.folder import RunFolder
from dhr_batch.pipeline.runs.records.stored_plan import StoredPlan
from dhr_batch.tests.faults import driven

SHARDS = ["00000.json", "00001.json", "00002.json"]


def quarantine(*words: object) -> Result:
    return CliRunner().invoke(main, ["quarantine", *map(str, words)])


def listed(run: object, *words: str) -> list[tuple[str, str, bool]]:
    result = quarantine("list", run, "--json", *words)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    return [(row["image_id"], row["error_class"], row["waiting"]) for row in rows]


def sound(run: object) -> str:
    """What `verify` says about a run in which nothing is wrong."""
    result = CliRunner().invoke(main, ["verify", str(run)])
    assert result.exit_code == 0, result.output
    return result.output


def manifests(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "_state" / "shards").iterdir())


def rows(run: Path, without: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    tables = sorted({path.parent.name for path in run.glob("*/part-*.parquet")})
    parts = {t: [pq.read_table(p) for p in sorted(run.glob(f"{t}/part-*"))] for t in tables}
    found = {table: pa.concat_tables(tables).to_pylist() for table, tables in parts.items()}
    return {t: [r for r in found[t] if r["image_id"] not in without] for t in tables}


@pytest.fixture
def run(small_run: Any, tmp_path: Path) -> Path:
    return small_run.copy(tmp_path / "run")


def test_every_failed_image_is_listed(small_run: Any, bucket: str) -> None:
    both = [("c.png", "not_an_image", False), ("e.png", "not_square", False)]
    assert listed(small_run.out) == both
    assert listed(small_run.upload(f"{bucket}/run")) == both
    assert listed(small_run.out, "--class", "not_square") == both[1:]
    text = quarantine("list", small_run.out).output
    assert "16 x 32 pixels" in text
    assert "align" in text


@pytest.mark.parametrize("command", ["list", "retry"])
def test_wrong_words_are_refused(run: Path, tmp_path: Path, command: str) -> None:
    result = quarantine(command, run, "--class", "crash")
    assert result.exit_code == 2
    assert "choose from: not_an_image, not_square" in result.stderr
    assert quarantine(command, tmp_path / "nowhere").exit_code == 2
    assert manifests(run) == SHARDS


def test_nothing_is_given_back_without_a_yes(run: Path) -> None:
    before = (run / "plan.json").read_bytes()
    result = quarantine("retry", run)
    assert result.exit_code == 2
    assert "Compute 2 shards" in result.stderr
    assert "--yes" in result.stderr
    assert (run / "plan.json").read_bytes() == before
    assert manifests(run) == SHARDS


def test_a_run_with_a_driver_is_left_alone(run: Path) -> None:
    driver = RunFolder(run)
    driver.lock()
    result = quarantine("retry", run, "--yes")
    driver.unlock()
    assert result.exit_code == 2
    assert "in use by process" in result.stderr
    assert manifests(run) == SHARDS


@pytest.mark.parametrize(
    ("point", "left"),
    [("after-open-marks", SHARDS), ("mid-reopen:1", ["00000.json", "00002.json"])],
)
def test_a_kill_leaves_each_shard_finished_or_to_do(
    small_run: Any, run: Path, point: str, left: list[str]
) -> None:
    before = rows(run, ())
    killed = small_run.dhr("quarantine", "retry", run, "--yes", DHR_BATCH_CRASH_AT=point)
    assert killed.returncode == -signal.SIGKILL
    assert manifests(run) == left
    sound(run)
    assert rows(run, ()) == before
    assert quarantine("retry", run, "--yes").exit_code == 0
    assert manifests(run) == SHARDS[:1]
    assert listed(run) == [("c.png", "not_an_image", True), ("e.png", "not_square", True)]
    assert "to be computed again: shards 1, 2" in sound(run)
    assert rows(run, ()) == before


def test_a_repaired_image_ends_in_the_tables_once(
    small_run: Any, run: Path, tmp_path: Path
) -> None:
    photographs = tmp_path / "photographs"
    shutil.copytree(small_run.photographs, photographs)
    dataset = tmp_path / "small.yaml"
    dataset.write_text(f"name: small\nroot: {photographs}\naligned: true\n")
    before = rows(run, ("c.png",))
    Image.open(photographs / "f.png").rotate(90).save(photographs / "c.png")

    result = quarantine("retry", run, "--class", "not_an_image", "--yes")
    assert result.exit_code == 0, result.output
    said = result.output.strip().splitlines()
    assert said[0] == "to be retried: 1 image in 1 shard; now run:"
    words = shlex.split(said[1])
    assert words[0] == "dhr-batch"
    words[words.index("--dataset") + 1] = str(dataset)
    assert manifests(run) == ["00000.json", "00002.json"]

    killed = small_run.dhr(*words[1:], DHR_BATCH_CRASH_AT="mid-publish:3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "not published yet: shards 1" in sound(run)
    with driven.without_ray():
        done = CliRunner().invoke(main, [*words[1:], "--no-report"])
    assert done.exit_code == 0, done.output
    assert "3 of 3 shards verified, 5 images done, 1 quarantined" in sound(run)
    assert listed(run) == [("e.png", "not_square", False)]
    assert rows(run, ("c.png",)) == before
    assert len([r for r in rows(run, ())["latents"] if r["image_id"] == "c.png"]) == 1
    stored = json.loads((run / "plan.json").read_text())
    status = (photographs / "c.png").stat()
    assert stored["contents"][1][0] == f"{status.st_size}@{status.st_mtime_ns}"

    # From here on its content counts like that of all others, which were never reopened.
    for name in ("c.png", "e.png"):
        shutil.copy(small_run.photographs / "c.png", photographs / name)
        refused = CliRunner().invoke(main, ["plan", *words[2:]])
        assert refused.exit_code == 2
        assert f"with different content: {name}" in refused.output
        shutil.copy(photographs / "f.png", photographs / name)
        if name == "c.png":
            Image.open(photographs / "f.png").rotate(90).save(photographs / name)


def test_the_plan_of_a_started_run_says_how_far_it_is(small_run: Any, run: Path) -> None:
    (run / "_state" / "shards" / "00001.json").unlink()
    options = [*small_run.words, "--out", str(run)]
    for words in (["plan"], ["run", "--dry-run"]):
        result = CliRunner().invoke(main, [*words, *options])
        assert result.exit_code == 0, result.output
        assert "6 images, 3 shards" in result.output
        assert "so far     2 of 3 shards: 3 images done, 1 quarantined" in result.output
    content = json.loads(CliRunner().invoke(main, ["plan", *options, "--json"]).stdout)
    assert content["run"]["shards"] == {"total": 3, "done": 2}
    assert content["run"]["changes"] == []
    assert content["shards"] == [["a.png", "b.png"], ["c.png", "d.png"], ["e.png", "f.png"]]
    changed = CliRunner().invoke(main, ["plan", *options, "--set", "seed=1"])
    assert changed.exit_code == 2
    assert "seed: 0 -> 1" in changed.stderr


def test_the_printed_settings_make_the_same_plan(small_run: Any, tmp_path: Path) -> None:
    shown = CliRunner().invoke(main, ["config", "show", *small_run.words])
    assert shown.exit_code == 0, shown.output
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    place = ["--out", str(small_run.out)]
    same = CliRunner().invoke(main, ["plan", "-c", str(tmp_path / "shown.yaml"), *place])
    assert same.exit_code == 0, same.output
    assert "so far     3 of 3 shards" in same.output
    assert CliRunner().invoke(main, ["plan", "--limit", "0"]).exit_code == 2


def test_the_command_that_goes_on_names_what_is_no_default(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a b.png")
    options = ["--dataset", str(tmp_path / "photos"), "--preset", "tiny", "--gpus", "0"]
    options += [
        "--set",
        "refine.name=none",
        "--set",
        "embed.steps=3",
        "--set",
        "image_timeout=null",
    ]
    options += ["--set", "edit.edits=[{direction: smile, strengths: [1, 2]}]", "--seed", "5"]
    plan = json.loads(CliRunner().invoke(main, ["plan", *options, "--json"]).stdout)
    command = goes_on(StoredPlan.from_json(plan), "s3://bucket/my run")
    words = shlex.split(command)
    assert words[:2] == ["dhr-batch", "run"]
    assert words[-2:] == ["--out", "s3://bucket/my run"]
    again = json.loads(CliRunner().invoke(main, ["plan", *words[2:-2], "--json"]).stdout)
    assert again["config"] == plan["config"]
    named = [word.partition("=")[0] for word in words[words.index("--set") :] if "=" in word]
    assert named == ["image_timeout", "embed.steps", "refine.name", "edit.edits"]
