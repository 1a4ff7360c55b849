"""Images that end their worker: exactly they are quarantined, and nothing else is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.driver import RunFailed
from dhr_batch.tests.faults import harness
from dhr_batch.tests.faults.stages import NAMES


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with harness.session():
        yield


def faulty(**options: Any) -> dict[str, Any]:
    return {"name": NAMES["embed"], **options}


def deaths(said: str) -> int:
    return said.count("is lost")


def manifest(out: Path, shard: int) -> dict[str, Any]:
    return json.loads((out / "_state" / "shards" / f"{shard:05d}.json").read_bytes())


GOOD = [f"good-{i}.png" for i in range(8)]


@pytest.mark.parametrize(
    ("bad", "error_class", "most"),
    [
        ("exit-1.png", "crash", 3),
        ("segv-1.png", "crash", 3),
        ("cuda-1.png", "crash", 3),
        ("reader-exit-1.png", "crash", 3),
        ("loop-1.png", "timeout", 2),
    ],
)
def test_the_image_that_ends_workers_is_the_only_one_quarantined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str, error_class: str, most: int
) -> None:
    names = [*GOOD[:5], bad, *GOOD[5:]]
    items = harness.photographs(tmp_path / "in", names)
    timeout = 1.5 if error_class == "timeout" else 600
    made = harness.make(items, shard_size=6, batch_size=2, image_timeout=timeout)
    outcome = harness.run(made, tmp_path / "out")
    assert (outcome.done, outcome.quarantined, outcome.exit_code) == (8, 1, 0)
    assert harness.classes(tmp_path / "out") == {bad: error_class}
    assert harness.finished(tmp_path / "out") == GOOD
    said = capsys.readouterr().err
    assert deaths(said) == most
    assert f"1 x {error_class}" in said
    receipt = manifest(tmp_path / "out", 0)
    assert receipt["attempts"] == most + 1
    assert len(receipt["failed_attempts"]) == most
    assert receipt["worker"]["pid"] > 0
    assert receipt["memory_peak"]["host"] > 10**7
    row = harness.table(tmp_path / "out", "quarantine").iloc[0]
    assert (row["stage"], row["source"]) == ("worker", bad)
    assert str(tmp_path) not in row["message"]


def test_two_such_images_in_a_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["exit-1.png", "good-1.png", "exit-2.png", "good-2.png"]
    items = harness.photographs(tmp_path / "in", names)
    harness.run(harness.make(items, shard_size=4), tmp_path / "out")
    assert harness.classes(tmp_path / "out") == {"exit-1.png": "crash", "exit-2.png": "crash"}
    assert harness.finished(tmp_path / "out") == ["good-1.png", "good-2.png"]
    assert deaths(capsys.readouterr().err) == 4


def test_bad_luck_is_held_against_no_image(tmp_path: Path) -> None:
    items = harness.photographs(tmp_path / "in", ["good-1.png", "unlucky-1.png", "good-2.png"])
    (tmp_path / "crashes").mkdir()
    embed = faulty(folder=str(tmp_path / "crashes"))
    outcome = harness.run(harness.make(items, shard_size=3, embed=embed), tmp_path / "out")
    assert (outcome.done, outcome.quarantined) == (3, 0)
    assert len(list((tmp_path / "crashes").iterdir())) == 2


def test_rows_of_an_isolated_shard_equal_those_of_a_quiet_one(tmp_path: Path) -> None:
    items = harness.photographs(tmp_path / "in", ["good-1.png", "unlucky-1.png", "good-2.png"])
    for name, crashes in (("quiet", 2), ("unlucky", 0)):
        folder = tmp_path / f"crashes-{name}"
        folder.mkdir()
        for count in range(crashes):
            (folder / str(count)).touch()
        harness.run(
            harness.make(items, shard_size=3, embed=faulty(folder=str(folder))), tmp_path / name
        )
    for name in ("images", "latents", "metrics"):
        quiet, unlucky = (harness.table(tmp_path / out, name) for out in ("quiet", "unlucky"))
        assert quiet.astype(str).equals(unlucky.astype(str)), name


def test_memory_that_suffices_for_fewer_images_loses_none(tmp_path: Path) -> None:
    names = [*GOOD, "oom-1.png", *(f"more-{i}.png" for i in range(7))]
    items = harness.photographs(tmp_path / "in", names)
    made = harness.make(items, shard_size=16, batch_size=8, embed=faulty(memory=2))
    outcome = harness.run(made, tmp_path / "out")
    assert (outcome.done, outcome.quarantined) == (15, 1)
    assert harness.classes(tmp_path / "out") == {"oom-1.png": "oom"}
    assert harness.finished(tmp_path / "out") == [n for n in names if n != "oom-1.png"]


def test_image_errors_cost_no_worker_and_are_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["noface-1.png", "nan-1.png", "nandelta-1.png", "good-1.png"]
    items = harness.photographs(tmp_path / "in", names)
    out = tmp_path / "out"
    harness.run(harness.make(items, shard_size=4), out)
    expected = {"noface-1.png": "no_face", "nan-1.png": "ArithmeticError"}
    assert harness.classes(out) == expected | {"nandelta-1.png": "ValueError"}
    assert harness.finished(out) == ["good-1.png"]
    assert deaths(capsys.readouterr().err) == 0
    rows = harness.table(out, "quarantine").set_index("image_id")
    assert rows["stage"].to_dict() == {
        "noface-1.png": "embed",
        "nan-1.png": "embed",
        "nandelta-1.png": "write",
    }
    assert rows["message"]["nan-1.png"] == "nan-1.png: diverged in x.py"
    log = (out / "_state" / "logs" / "worker-0.log").read_text()
    assert "nan-1.png quarantined in embed as ArithmeticError" in log
    assert "Traceback" in log
    failures = {f["image_id"]: f for f in manifest(out, 0)["failures"]}
    assert "misbehave" in failures["nan-1.png"]["traceback"]


def test_a_full_disk_stops_the_run_and_quarantines_nothing(tmp_path: Path) -> None:
    items = harness.photographs(tmp_path / "in", ["good-1.png", "full-1.png"])
    with pytest.raises(RunFailed, match=r"No space left.*same command goes on"):
        harness.run(harness.make(items, shard_size=1), tmp_path / "out")
    assert list((tmp_path / "out").glob("quarantine/*")) == [
        tmp_path / "out" / "quarantine" / "part-00000.parquet"
    ]
    assert harness.classes(tmp_path / "out") == {}
    assert harness.finished(tmp_path / "out") == ["good-1.png"]


def test_a_bug_stops_the_run_after_two_attempts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = harness.photographs(tmp_path / "in", ["bug-1.png"])
    with pytest.raises(RunFailed, match=r"shard 0 \(bug-1.png\) failed 2 times: TypeError"):
        harness.run(harness.make(items), tmp_path / "out")
    assert deaths(capsys.readouterr().err) == 0


def test_workers_that_only_die_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhr_batch.pipeline.driver.DEATHS_IN_A_ROW", 4)
    items = harness.photographs(tmp_path / "in", [f"exit-{i}.png" for i in range(6)])
    with pytest.raises(RunFailed, match="4 workers ended one after the other"):
        harness.run(harness.make(items, shard_size=6), tmp_path / "out")


def test_a_wrong_file_fails_before_any_shard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = harness.photographs(tmp_path / "in", ["good-1.png", "good-2.png"])
    (tmp_path / "direction.npy").write_bytes(b"no array")
    moves = [{"direction": str(tmp_path / "direction.npy"), "strengths": [1]}]
    made = harness.make(
        items, workers=2, edit={"name": "directions", "edits": moves}, shard_size=1
    )
    with pytest.raises(RunFailed, match=r"direction\.npy"):
        harness.run(made, tmp_path / "out")
    assert deaths(capsys.readouterr().err) == 0
    assert not (tmp_path / "out" / "plan.json").exists()
