"""Where an export may be written, and what it leaves alone there: all of it or nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dhr_batch.pipeline.export import card as export_card
from dhr_batch.pipeline.export import write as export
from dhr_batch.pipeline.export.options import Options
from dhr_batch.pipeline.storage.local import LocalStorage
from dhr_batch.tests.pipeline.exported import (
    contents,
    dhr,
    exported,
    write_photographs,
    write_run,
)


def test_the_folder_lies_outside_run_and_current_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = dhr(run, "--out", run / "images" / ".." / "set")
    assert result.exit_code == 2
    assert "lies in the run" in result.stderr
    assert not (run / "set").exists()
    monkeypatch.chdir(tmp_path)
    for out in (".", ".."):
        result = dhr(run, "--out", out)
        assert result.exit_code == 2
        assert "current folder" in result.stderr
    assert not list(tmp_path.iterdir())
    assert exported(run, Path("set"))["out"] == str(tmp_path / "set")


def test_a_folder_with_something_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    for words in ([], ["--fresh"]):
        result = dhr(run, "--out", out, *words)
        assert result.exit_code == 2
        assert "contains other files than" in result.stderr
    assert contents(out).keys() == {"README.md"}


def test_an_earlier_export_is_replaced_on_request(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(run, out, "--include", "source")
    before = contents(out)
    result = dhr(run, "--out", out)
    assert result.exit_code == 2
    assert "--fresh" in result.stderr
    assert contents(out) == before
    exported(run, out, "--format", "webdataset", "--fresh")
    assert contents(out).keys() == {"README.md", "train-00000.tar"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_of_another_run_is_left_alone(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", write_photographs(tmp_path / "photographs"), seed=7)
    exported(other, tmp_path / "out")
    result = dhr(run, "--out", tmp_path / "out", "--fresh")
    assert result.exit_code == 2
    assert "contains other files" in result.stderr


def test_an_export_that_fails_leaves_what_was_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    exported(run, out)
    before = contents(out)

    def fails(*_: object) -> str:
        raise RuntimeError("no card")

    monkeypatch.setattr(export_card, "text", fails)
    with pytest.raises(RuntimeError, match="no card"):
        export.write_export(run, out, Options("parquet", fresh=True))
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_writer_of_a_marker_leaves_is_its_own(run: Path, tmp_path: Path) -> None:
    for folder in (".out.partial", "out"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "..dhr-batch.json.0123abcd").write_bytes(b"{")
    assert exported(run, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list((tmp_path / "out").glob("..*"))


def test_an_export_beside_other_files_that_fails_can_be_repeated(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While files are replaced one by one, those of both exports are listed."""
    out = tmp_path / "out"
    exported(run, out, "--edit", "yaw")
    (out / "mine.txt").write_text("mine")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "it fails", "x")

    with monkeypatch.context() as patched:
        patched.setattr(LocalStorage, "remove", fails)
        assert dhr(run, "--out", out, "--fresh").exit_code == 1
    exported(run, out, "--fresh")
    exported(run, tmp_path / "new" / "out")
    assert contents(out) == contents(tmp_path / "new" / "out") | {"mine.txt": b"mine"}
