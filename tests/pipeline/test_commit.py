"""Attempts become part of a run once, completely, or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dhr_batch.pipeline.commit import Refused, RunFolder, create


def attempt(run: RunFolder, shard: int, content: bytes = b"rows") -> dict[str, Any]:
    name = run.new_attempt(shard, 1)
    (run.staging / name).mkdir(parents=True)
    for table in ("images", "latents"):
        (run.staging / name / f"{table}.parquet").write_bytes(content)
    return {"attempt": name, "files": {"images": {}, "latents": {}}, "ok": 2, "quarantined": 1}


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.parquet")}


DONE = {"images/part-00004.parquet": b"rows", "latents/part-00004.parquet": b"rows"}


def test_commit_publishes_and_leaves_no_staging(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.commit(4, attempt(run, 4), planned=3)
    assert files(tmp_path) == DONE
    assert list(run.committed()) == [4]
    assert list(run.staging.iterdir()) == []


def test_the_second_attempt_at_a_shard_loses(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first, second = attempt(run, 4), attempt(run, 4, b"other")
    run.commit(4, first, planned=3)
    run.commit(4, second, planned=3)
    assert files(tmp_path) == DONE
    assert run.committed()[4]["attempt"] == first["attempt"]


def test_a_missing_image_is_not_committed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="do not add up to the 4 planned"):
        run.commit(4, attempt(run, 4), planned=4)
    assert run.committed() == {}


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_kill_after_the_commit_point_rolls_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    run = RunFolder(tmp_path)
    receipt = attempt(run, 4)
    attempt(run, 5)
    monkeypatch.setattr(run, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run.commit(4, receipt, planned=3)
    for table in list(receipt["files"])[:moved]:
        (tmp_path / table).mkdir()
        staged = run.staging / receipt["attempt"] / f"{table}.parquet"
        staged.rename(tmp_path / table / "part-00004.parquet")
    assert list(RunFolder(tmp_path).recover()) == [4]
    assert files(tmp_path) == DONE
    assert not run.staging.exists()


def test_a_kill_before_the_commit_point_leaves_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    attempt(run, 4)
    assert RunFolder(tmp_path).recover() == {}
    assert files(tmp_path) == {}


def test_create_never_overwrites_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    assert create(tmp_path / "a.json", b"1")
    assert not create(tmp_path / "a.json", b"2")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"1"


_OTHER = """
import sys
from pathlib import Path
from dhr_batch.pipeline.commit import RunFolder
RunFolder(Path(sys.argv[1])).lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_driver_is_refused_until_the_first_one_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OTHER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(Refused, match=rf"in use by process {other.pid}"):
            RunFolder(tmp_path).lock()
        other.kill()
        other.wait()
        run = RunFolder(tmp_path)
        run.lock()
        run.unlock()
