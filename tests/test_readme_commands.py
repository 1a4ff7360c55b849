"""Every command of README.md, on two photographs and the tiny generator."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from skimage import data

from dhr_batch.cli import main
from dhr_batch.tests.faults import harness

ROOT = Path(__file__).resolve().parent.parent
# Downloads, samples, fits and benchmarks that take minutes and need real models, and what takes
# checkpoints, edits and identities, which are not there; tests of their own run these.
ONLY_HELP = (
    *("models pull", "models convert", "datasets synthesize"),
    *("edits fit", "edits sefa", "edits ganspace", "edits text-features", "bench", "export"),
)
# A network whose weights users bring.
BROUGHT = "embed.name=e4e"
TINY = ["--preset", "tiny", "--set", "edit.edits=[]"]


def commands() -> list[str]:
    """Commands of the README without `dhr-batch` and the remark behind them, in order."""
    lines = re.findall(r"^    dhr-batch (.*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    return [line.partition(" #")[0].strip() for line in lines]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with `photos` and `mine.yaml`; it stands for `~` as well."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    face = Image.fromarray(data.astronaut())
    face.save(home / "photos" / "astronaut.png")
    Image.fromarray(data.coffee()).resize((200, 150)).save(home / "photos" / "no_face.jpg")
    (home / "mine.yaml").write_text("embed: {steps: 3}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        yield home


def adapted(command: str, home: Path, bucket: str) -> list[str]:
    """The words as a shell passes them on, without GPUs, named datasets and buckets."""
    words = shlex.split(command.replace("~", str(home)).replace("s3://bucket", bucket))
    named = ("celebahq", "synthetic")
    words = [str(home / "photos") if word in named else word for word in words]
    words = [word.replace("runs/faces", "runs/photos") for word in words]
    for position, word in enumerate(words):
        if word in ("--gpus", "--device"):
            words[position + 1] = "0" if word == "--gpus" else "cpu"
    if words[:2] == ["quarantine", "retry"]:
        words.append("--yes")  # A person would be asked.
    planned = words[0] in ("run", "plan")
    return words + ([*TINY, *(() if "--gpus" in words else ("--gpus", "0"))] if planned else [])


def call(words: list[str]) -> str:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output


def test_commands_are_found() -> None:
    found = commands()
    assert len(found) > 15
    assert found[0].startswith("run --dataset ~/photos")
    for start in ONLY_HELP:
        assert any(command.startswith(start) for command in found), start


@pytest.mark.parametrize("command", commands())
def test_its_words_are_understood(command: str, place: Path, bucket: str) -> None:
    """`run` and `plan` get as far as a plan; of the others the options are read, and of those that
    begin from a run, which is not there."""
    words = adapted(command, place, bucket)
    if words[0] in ("run", "plan") and "--from" not in words:
        call(words if words[0] == "plan" or "--dry-run" in words else [*words, "--dry-run"])
    else:
        call([*words, "--help"])


def runs(command: str) -> bool:
    return not command.startswith(ONLY_HELP) and BROUGHT not in command


@pytest.mark.slow
def test_all_run_one_after_the_other(place: Path, bucket: str) -> None:
    """In the order of the README, so that reports and checks find the run made before."""
    ran = 0
    with harness.session():
        for command in filter(runs, commands()):
            if command.startswith(("run", "plan")) and "--out" not in command:
                # Folders named after dataset and generator; these commands differ in settings.
                for folder in (place / "runs").glob("photos-*"):
                    shutil.rmtree(folder)
            output = call(adapted(command, place, bucket))
            assert "Traceback" not in output
            ran += 1
    print(f"\n{ran} commands")
    assert ran == sum(map(runs, commands())) > 10
