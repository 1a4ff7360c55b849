"""Every command of the documentation, on two photographs and the tiny generator."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage import data

from dhr_batch.cli import main
from dhr_batch.pipeline.planning import config as settings
from dhr_batch.stages import registry
from dhr_batch.tests.documents import PAGES, ROOT, commands, inline, name
from dhr_batch.tests.faults import harness

# Downloads, samples, fits and benchmarks that take minutes and need real models, and what takes
# checkpoints, edits and identities, which are not there; tests of their own run these.
ONLY_HELP = (
    *("models pull", "models convert", "datasets synthesize"),
    *("edits fit", "edits sefa", "edits ganspace", "edits text-features", "bench", "export"),
)
# A network whose weights users bring.
BROUGHT = "embed.name=e4e"
TINY = ["--preset", "tiny", "--set", "edit.edits=[]"]


# `test_contributing` runs that of the recipe in CONTRIBUTING.md.
GUIDES = [page for page in PAGES if page.name != "CONTRIBUTING.md"]
COMMANDS = tuple(dict.fromkeys(command for page in GUIDES for command in commands(page)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with `photos`, photographs and `mine.yaml`; it stands for `~` as well."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    face = Image.fromarray(data.astronaut())
    face.save(home / "photos" / "astronaut.png")
    Image.fromarray(data.coffee()).resize((200, 150)).save(home / "photos" / "no_face.jpg")
    for file in ("photo.jpg", "team.jpg"):
        face.save(home / file)
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
    if words[0] == "edit":
        words += ["--preset", "tiny", "--device", "cpu"]
    planned = words[0] in ("run", "plan")
    return words + ([*TINY, *(() if "--gpus" in words else ("--gpus", "0"))] if planned else [])


def call(words: list[str]) -> str:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 40
    for start in ONLY_HELP:
        assert any(command.startswith(start) for command in COMMANDS), start


@pytest.mark.parametrize("command", COMMANDS)
def test_its_words_are_understood(command: str, place: Path, bucket: str) -> None:
    """`run` and `plan` get as far as a plan; of the others the options are read, and of those that
    begin from a run, which is not there."""
    words = adapted(command, place, bucket)
    if words[0] in ("run", "plan") and "--from" not in words:
        call(words if words[0] == "plan" or "--dry-run" in words else [*words, "--dry-run"])
    else:
        call([*words, "--help"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_within_the_text_are_understood(page: Path) -> None:
    """Their options are parsed, and the modules and targets that they name exist."""
    for text in inline(page):
        if text.startswith("dhr-batch"):
            parse(main, text.split()[1:])
        elif found := re.match(r"python -m (dhr_batch\.\S+)(.*)", text, re.S):
            module = importlib.import_module(found[1])
            if isinstance(getattr(module, "main", None), click.Command):
                parse(module.main, found[2].split())
        elif text.startswith("make "):
            makefile = (ROOT / "Makefile").read_text("utf-8")
            assert re.search(rf"^{text.split()[1]}:", makefile, re.M), text


def parse(command: click.Command, words: list[str]) -> None:
    """Look a command up in its group, and let its parser read the options."""
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    if not isinstance(command, click.Group):
        command.make_parser(click.Context(command)).parse_args(list(words))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_within_the_text_exist(page: Path) -> None:
    known = {
        (family, option)
        for family in registry.STAGES
        for member in registry.names(family)
        for option in settings.options_class(family, member).model_fields
    }
    families = "|".join(registry.STAGES)
    used = re.findall(rf"`(?:--set )?({families})\.([a-z]\w*)[^`/(]*`", page.read_text("utf-8"))
    assert [each for each in used if each not in known and each[1] != "py"] == []


def runs(command: str) -> bool:
    brought = BROUGHT in command or "--address" in command
    return not brought and not command.startswith(ONLY_HELP)


@pytest.mark.slow
def test_all_run_one_after_the_other(place: Path, bucket: str) -> None:
    """In the order of the pages, so that reports and checks find the run made before."""
    ran = 0
    with harness.session():
        for command in filter(runs, COMMANDS):
            if command.startswith(("run", "plan")) and "--out" not in command:
                # Folders named after dataset and generator; these commands differ in settings.
                for folder in (place / "runs").glob("photos-*"):
                    shutil.rmtree(folder)
            output = call(adapted(command, place, bucket))
            assert "Traceback" not in output
            ran += 1
    print(f"\n{ran} commands")
    assert ran == sum(map(runs, COMMANDS)) > 10
