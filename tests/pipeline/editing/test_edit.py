"""`dhr-batch edit`: what is written, and what is said about the rest."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dhr_batch.cli import main
from dhr_batch.pipeline.cli import output
from dhr_batch.pipeline.datasets import named
from dhr_batch.pipeline.editing import chain, files
from dhr_batch.pipeline.editing.photographs import find
from dhr_batch.pipeline.errors import Refused, StorageError
from dhr_batch.stages.paste_back import paste_back
from dhr_batch.tests.pipeline.edited import EDITS, QUADS, picture, pixels

pytestmark = pytest.mark.usefixtures("without_ray")
FILES = (
    "smile+2.photograph.png", "smile+2.pair.png", "smile+2.png",
    "smile_1+yaw_-0_5.photograph.png", "smile_1+yaw_-0_5.pair.png", "smile_1+yaw_-0_5.png",
    "refined.png", "smile-1_to_smile+1.png", "smile-1_to_smile+1.webp",
)  # fmt: skip


def dhr(photograph: Path, *words: object) -> Result:
    settings = photograph.parent.parent / "stages.yaml"
    words = ("edit", *words, "-c", settings, "--device", "cpu")
    return CliRunner().invoke(main, list(map(str, words)))


def test_the_command_writes_pictures(tmp_path: Path, photograph: Path) -> None:
    black, out = photograph.with_name("black.png"), tmp_path / "out"
    Image.new("RGB", (64, 64)).save(black)
    words = [photograph, black, "--sweep", "smile=-1:1:3", "--out", out]
    for text in EDITS:
        words += ["--edit", text]
    done = dhr(photograph, *words)
    assert done.exit_code == 0, (done.output, done.exception)
    files = [out / f"photo.png.{name}" for name in FILES]
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert done.stdout.splitlines() == list(map(str, files))
    assert sorted(out.iterdir()) == sorted(files)
    assert "Error: black.png: no face was found" in done.stderr
    assert "photo.png: darker" in done.stderr
    refined, crop = pixels(files[6]), pixels(files[2])
    whole = paste_back(pixels(photograph), QUADS[0], refined, crop)
    np.testing.assert_array_equal(pixels(files[0]), whole)
    before, after = pixels(files[1])[:, :60], pixels(files[1])[:, -60:]
    np.testing.assert_array_equal(before, pixels(photograph)[40:100, 70:130])
    np.testing.assert_array_equal(after, whole[40:100, 70:130])
    with Image.open(files[7]) as strip, Image.open(files[8]) as animation:
        assert strip.width == 3 * 60 + 2 * 8
        assert (animation.format, animation.n_frames) == ("WEBP", 4)

    changed = pixels(photograph)
    Image.fromarray(changed).save(files[0])
    Image.fromarray(changed).save(files[8])
    kept = files[0].read_bytes(), files[8].read_bytes()
    again = dhr(photograph, *words)
    assert again.exit_code == 1
    assert again.stdout.splitlines() == list(map(str, files[1:8]))
    assert f"Error: {files[0]}, {files[8]}: they are not replaced" in again.stderr
    assert (files[0].read_bytes(), files[8].read_bytes()) == kept
    files[8].unlink()
    for _ in ("written again", "replaced"):
        assert f"Error: {files[0]}: it is not replaced" in dhr(photograph, *words).stderr


def test_the_command_says_what_it_is_doing(
    tmp_path: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    @contextmanager
    def waiting(what: str) -> Iterator[Callable[[str], None]]:
        shown.append(what)
        yield shown.append
        shown.append("")

    monkeypatch.setattr(output, "waiting", waiting)
    assert dhr(photograph, photograph.parent, "--out", tmp_path / "out").exit_code == 0
    name = "photo.png"
    stages = ("align", "embed", "segment", "refine", "refine 1 of 2", "refine 2 of 2", "edit")
    assert shown == [
        "reading the settings", "", "listing the photographs", "", "reading the settings", "",
        "checking the models", "",
        *(f"{name}: {doing}" for doing in ("loading the networks", *stages, "measure")), "",
        f"{name}: writing", "",
    ]  # fmt: skip


def test_what_is_shown_on_a_terminal_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with output.waiting("listing") as show:
        show("[red]a.png: refine 1 of 2")
    written = screen.getvalue()
    assert "[red]a.png: refine 1 of 2 ..." in written
    assert written.endswith("\x1b[2K")


def test_results_as_json(tmp_path: Path, photograph: Path) -> None:
    words = [photograph, "--edit", "smile=2", "--out", tmp_path / "out", "--face", "1", "--json"]
    (result,) = json.loads(dhr(photograph, *words).stdout)
    assert result == {
        "photograph": "photo.png",
        "files": [str(tmp_path / "out" / f"photo.png.{name}") for name in (*FILES[:3], FILES[6])],
        "error": None,
        "metrics": {"photo.png": {"refined": {"psnr": 30}, "edit:smile:2": {"psnr": None}}},
        "notes": ["darker"],
    }
    Image.new("RGB", (64, 64)).save(photograph)
    done = dhr(photograph, *words)
    assert done.exit_code == 3
    (result,) = json.loads(done.stdout)
    assert (result["photograph"], result["error"]["class"]) == ("photo.png", "no_face")
    picture(140, 120).save(photograph.with_name("good.png"))
    words = [photograph.parent, *words[1:]]
    for share, code in ((0.4, 3), (0.5, 0)):
        assert dhr(photograph, *words, "--set", f"max_quarantined={share}").exit_code == code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(ENOSPC, "No space left on device", "out/b"), 1, "out/b: No space left on device"),
        (StorageError("s3://bucket", "no answer"), 1, "s3://bucket: no answer"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_leaves_the_results_before_it(
    error: BaseException, code: int, message: str, tmp_path: Path, photograph: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The second photograph fails after its first file, and the third is not begun."""
    write, calls = files.write, itertools.count()

    def failing(pictures: Iterable[tuple[str, bytes]], folder: Path) -> Iterator[Path]:
        written = write(pictures, folder)
        if next(calls) == 0:
            yield from written
            return
        yield next(written)
        raise error

    monkeypatch.setattr(files, "write", failing)
    monkeypatch.setattr(output, "ignore_signals", lambda: None)
    for name in ("second.png", "third.png"):
        photograph.with_name(name).write_bytes(photograph.read_bytes())
    words = ["--edit", "smile=2", "--out", tmp_path / "out", "--json"]
    done = dhr(photograph, photograph.parent, *words)
    assert done.exit_code == code
    first, second = json.loads(done.stdout)
    assert (len(first["files"]), first["error"]) == (4, None)
    assert second["metrics"] == {"second.png": first["metrics"]["photo.png"]}
    assert [Path(file).name for file in second["files"]] == ["second.png.smile+2.photograph.png"]
    assert message in second["error"]["message"]
    assert json.loads(done.stderr.splitlines()[-1])["exit_code"] == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--edit", "smile"], "'smile'"),
        (["--edit", "smile=a"], "NAME=STRENGTHS"),
        (["--sweep", "smile=1"], "it names one picture"),
        (["--face", "second"], "a number from 0"),
        (["--set", "refine.steps=3"], "refine.steps"),
        (["--set", "dataset=portraits"], "dataset=portraits: an edit runs all stages"),
        (["--set", "first_stage=edit"], "first_stage=edit: an edit runs all stages"),
        (["--out", "in/out"], "lies in the dataset"),
        (["nowhere.jpg"], "nowhere.jpg"),
        (["in/*.gif"], "nothing matches it"),
        (["smile=2"], "if it is an edit, write: --edit smile=2"),
        (["--sweep", "smile=-2:2:100000"], "more than 500 pictures"),
    ],
)
def test_what_cannot_be_done_is_refused(
    words: list[str], said: str, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photograph.parent.parent)
    done = dhr(photograph, "in", *words)
    assert done.exit_code == 2, (done.output, done.exception)
    assert said in done.stderr
    assert sorted(Path().iterdir()) == [Path("in"), Path("stages.yaml")]


def test_directions_are_checked_before_photographs_are_listed(
    photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named, "listed", lambda dataset: pytest.fail("listed"))
    words = ["edit", str(photograph.parent), "--edit", "smiel=2", "--device", "cpu"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2, done.exception
    assert "unknown direction 'smiel' (did you mean 'smile'?)" in done.stderr


def test_the_folder_is_checked_before_photographs_are_edited(
    photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "Chain", lambda *_: pytest.fail("loaded"))
    access, out = os.access, tmp_path / "out"
    monkeypatch.setattr(os, "access", lambda path, *how: path != out and access(path, *how))
    done = dhr(photograph, photograph, "--out", out)
    assert done.exit_code == 1, done.exception
    assert f"{out}: no files can be written to it" in done.stderr


def test_a_file_that_is_no_photograph_is_named_before_networks_are_loaded(
    photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "load", lambda *_, **__: pytest.fail("loaded"))
    photograph.write_text("no photograph")
    done = dhr(photograph, photograph, "--out", photograph.parent.parent / "out")
    assert done.exit_code == 3, done.exception
    assert "photo.png: the file is not an image of a known format" in done.stderr


def test_files_folders_and_globs_name_photographs(photograph: Path) -> None:
    folder = photograph.parent
    (folder / "notes.txt").write_text("no photograph")
    (folder / "deep").mkdir()
    picture(8, 8).save(folder / "deep" / "other.jpg")
    for places, names in [
        ([photograph], ["photo.png"]),
        ([folder], ["deep/other.jpg", "photo.png"]),
        ([folder / "*"], ["photo.png"]),
        ([photograph, folder / "**" / "*"], ["photo.png", "other.jpg"]),
    ]:
        assert [item.image_id for item in find(list(map(str, places))).listed().items] == names
    assert find([str(folder)]).listed().ignored == {".txt": 1}
    (folder / "deep" / "photo.png").write_bytes(photograph.read_bytes())
    with pytest.raises(Refused, match="same name"):
        find([str(photograph), str(folder / "deep" / "*")]).listed()
    with pytest.raises(Refused, match=r"missing\.JPG: there is no such file"):
        find([str(folder / "missing.JPG")])
