"""Exports leave the files of others in their folder and beside it as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhr_batch.pipeline.export import target
from dhr_batch.tests.pipeline.foreign import MINE, dhr, files, put


def test_what_the_user_adds_to_an_export_stays(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("export", run, "--out", out, "--format")
    assert dhr(*words, "imagefolder").exit_code == 0
    added = {"notes.txt": MINE, "train/smile+1/mine.png": MINE, ".DS_Store": MINE}
    put(out, added)
    done = dhr(*words, "webdataset", "--fresh")
    assert done.exit_code == 0, done.output
    assert "files that no export wrote: .DS_Store, notes.txt, train/smile+1/mine.png" in done.output
    assert files(out).keys() == {*added, ".dhr-batch.json", "README.md", "train-00000.tar"}
    assert {name: files(out)[name] for name in added} == added
    put(out, {"README.md": MINE})
    before = files(out)
    done = dhr(*words, "imagefolder", "--fresh")
    assert done.exit_code == 2
    assert "README.md" in done.output
    assert files(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".out.partial", ".out.old"])
def test_folders_with_the_temporary_names_of_an_export_survive(
    run: Path, tmp_path: Path, name: str
) -> None:
    words = ("export", run, "--out", tmp_path / "out")
    assert dhr(*words).exit_code == 0
    put(tmp_path / name, {"mine": MINE})
    done = dhr(*words, "--fresh")
    assert done.exit_code == 2
    assert name in done.output.replace("\n", "")
    assert files(tmp_path / name) == {"mine": MINE}
    assert files(tmp_path / "out")


@pytest.mark.parametrize("killed_in", ["place", "_swap"])
def test_foreign_files_in_the_folder_of_a_killed_export_survive(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    words = ("export", run, "--out", tmp_path / "out")

    def killed(*_: object) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(target, "_discard", lambda folder: None)
        patch.setattr(target, killed_in, killed)
        assert dhr(*words).exit_code == 137
    folder = tmp_path / ".out.partial"
    assert len(files(folder)) > 2
    if killed_in == "place":
        # The process may also have been killed while it wrote the list.
        with (folder / ".dhr-batch.files").open("a") as names:
            names.write('"train/')
    put(folder, {"train/mine.txt": MINE})
    done = dhr(*words)
    assert done.exit_code == 2
    assert "train/mine.txt" in done.output.replace("\n", "")
    assert files(folder)["train/mine.txt"] == MINE
    (folder / "train" / "mine.txt").unlink()
    assert dhr(*words).exit_code == 0
    assert not folder.exists()
    assert not [name for name in files(tmp_path / "out") if "dhr-batch.files" in name]
