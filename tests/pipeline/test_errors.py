"""The same mistake ends every command alike: exit code, layout, text and JSON."""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from dhr_batch.cli import main
from dhr_batch.pipeline.cli.output import Command
from dhr_batch.pipeline.errors import CommandError, Refused, StorageError
from dhr_batch.stages.registry import UnknownName
from dhr_batch.tests.pipeline.exported import write_photographs, write_run

# RUN, OUT and DATA stand for what a mistake gives.
ON_A_RUN = [
    "status RUN",
    "verify RUN",
    "report RUN",
    "render RUN --all --out OUT",
    "export RUN --out OUT",
    "quarantine list RUN",
    "quarantine retry RUN --yes",
    "plan --dataset RUN --from edit --gpus 0",
    "edits sweep RUN --edit smile=1 --gpus 0 --out OUT",
]
FROM_A_RUN = ON_A_RUN[-2:]
STARTS = [
    "plan --dataset DATA --preset tiny --gpus 0 --out OUT",
    "run --dataset DATA --preset tiny --gpus 0 --out OUT",
    "bench -c BENCH --gpus 0 --out OUT",
]
WRITES = [
    *STARTS,
    "report RUN --out OUT",
    "render RUN --all --out OUT",
    "export RUN --out OUT",
    "edits sweep RUN --edit smile=1 --gpus 0 --out OUT",
    "edits fit --samples 50 --out OUT",
    "datasets synthesize --images 1 --out OUT",
]
# Those that write to the place before they compute anything.
WRITTEN_AT_ONCE = [
    c for c in WRITES if c.startswith(("run", "bench", "report", "export", "edits sweep"))
]
MODELS = [
    "run --dataset portraits --preset tiny --gpus 0 --out OUT",
    "plan --dataset portraits --preset tiny --gpus 0 --out OUT",
    "bench --preset smoke --dataset portraits --gpus 0 --out OUT",
    "datasets check portraits",
    "datasets synthesize --images 1 --out OUT",
    "edits sefa --out OUT/directions.npz",
    "edits fit --samples 50 --out OUT",
]
SAY_MORE = ("edits fit", "models pull")
JSON = ("status", "verify", "report", "export", "quarantine list", "plan", "run", "bench")


def ended(command: str, **places: object) -> Result:
    words = [str(places.get(word, word)) for word in command.split()]
    words = [str(places["OUT"]) + w[3:] if w.startswith("OUT/") else w for w in words]
    return CliRunner().invoke(main, words)


def mistaken(command: str, code: int, said: str, **places: object) -> tuple[str, str]:
    """What a command with a mistake says of it in its two lines, which is checked to be alike."""
    result = ended(command, **places)
    assert isinstance(result.exception, SystemExit), (command, result.exception)
    assert (result.exit_code, result.stdout) == (code, ""), (command, result.output)
    *before, error = result.stderr.split("Error: ")
    assert not "".join(before) or command.startswith(SAY_MORE), result.output
    reason, hint, way_out = error.partition("\nHint: ")
    assert said in error, (command, error)
    assert hint, (command, error)
    assert len(way_out.splitlines()) == 1, (command, error)
    if command.startswith(JSON):
        as_json = ended(f"{command} --json", **places)
        assert (as_json.exit_code, as_json.stdout) == (code, ""), (command, as_json.output)
        told = json.loads(as_json.stderr.splitlines()[-1])
        assert set(told) == {"error", "exit_code"}
        assert told["exit_code"] == code
        parts = told["error"]
        assert list(parts) == ["what", "why", "way_out"]
        assert ": ".join(filter(None, (parts["what"], parts["why"]))) == reason
        assert parts["way_out"] == way_out.strip()
    return reason, way_out


@pytest.fixture(scope="module")
def run_with_edits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edited")
    return write_run(folder / "run", write_photographs(folder / "photographs"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ON_A_RUN)
def test_a_folder_that_does_not_exist(command: str, tmp_path: Path) -> None:
    place = tmp_path / "none"
    reason, way_out = mistaken(command, 2, "does not exist", RUN=place, OUT=tmp_path / "out")
    assert reason == f"{place}: it does not exist"
    assert way_out == "give the folder or URL of a run\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ON_A_RUN)
def test_a_file_instead_of_a_run(command: str, tmp_path: Path) -> None:
    place = tmp_path / "notes.txt"
    place.write_text("mine")
    said = mistaken(command, 2, "", RUN=place, OUT=tmp_path / "out")
    assert said == (f"{place}: it is a file", "give a folder\n")


@pytest.mark.parametrize("command", ON_A_RUN)
def test_a_folder_that_is_not_a_run(command: str, tmp_path: Path) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    reason, way_out = mistaken(command, 2, "not a run", RUN=place, OUT=tmp_path / "out")
    assert reason == f"{place}: it is not a run, because it has no plan.json"
    assert way_out == "give the folder or URL of a run\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "notes.txt"]


@pytest.mark.parametrize("command", ON_A_RUN)
def test_a_run_without_its_plan(small_run: Any, tmp_path: Path, command: str) -> None:
    run = small_run.copy(tmp_path / "run")
    (run / "plan.json").unlink()
    reason, _ = mistaken(command, 2, "not a run", RUN=run, OUT=tmp_path / "out")
    assert reason == f"{run}: it is not a run, because it has no plan.json"
    assert not (run / "report/index.html").exists()


@pytest.mark.parametrize("command", ["plan", "run", "run --dry-run"])
def test_a_start_in_a_run_without_its_plan(small_run: Any, tmp_path: Path, command: str) -> None:
    run = small_run.copy(tmp_path / "run")
    (run / "plan.json").unlink()
    words = f"{command} --dataset DATA --preset tiny --gpus 0 --out OUT"
    reason, way_out = mistaken(words, 2, "", DATA=small_run.photographs, OUT=run)
    assert reason.startswith(f"{run}: it has 3 finished shards but no plan.json")
    assert way_out == "put plan.json back, or choose another folder with --out\n"


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
@pytest.mark.parametrize("command", ON_A_RUN)
def test_a_damaged_plan(small_run: Any, tmp_path: Path, command: str, content: str) -> None:
    run = small_run.copy(tmp_path / "run")
    (run / "plan.json").write_text(content)
    reason, _ = mistaken(command, 2, "put back a copy", RUN=run, OUT=tmp_path / "out")
    assert reason.startswith(f"{run}/plan.json: it is {'damaged (' if content else 'empty'}")


@pytest.mark.parametrize("command", ON_A_RUN)
def test_an_unfinished_run(small_run: Any, tmp_path: Path, command: str) -> None:
    """What reads a run takes the part that is there; what begins from one needs all of it."""
    run = small_run.copy(tmp_path / "run")
    for path in [run / "_state/shards/00001.json", *run.glob("*/part-00001.parquet")]:
        path.unlink()
    places = {"RUN": run, "OUT": tmp_path / "out"}
    if command in FROM_A_RUN:
        reason, _ = mistaken(command, 2, "finish it with its own command", **places)
        assert reason == f"{run}: it is not finished: 1 of 3 shards are to do"
    elif command.startswith(("status", "verify", "quarantine list")):
        assert ended(command, **places).exit_code == 0


@pytest.mark.parametrize("command", [*STARTS, "edits sweep RUN --edit smile=1 --gpus 0 --out OUT"])
def test_an_unknown_setting(small_run: Any, tmp_path: Path, command: str) -> None:
    bench = {
        "datasets": [str(small_run.photographs)],
        "settings": {"generatr": 3},
        "embedders": {"w": {"settings": {}}},
    }
    (tmp_path / "bench.yaml").write_text(json.dumps(bench))
    places = {"RUN": small_run.out, "DATA": small_run.photographs, "OUT": tmp_path / "out"}
    words = "" if command.startswith("bench") else " --set generatr=3"
    reason, way_out = mistaken(command + words, 2, "", **places, BENCH=tmp_path / "bench.yaml")
    assert reason == "unknown setting generatr"
    assert way_out == "did you mean 'generator'?\n"


@pytest.mark.parametrize(
    ("words", "reason", "way_out"),
    [
        ("--set embed.steps", "--set 'embed.steps': it is not of the form", "write for example"),
        (
            "--set embed.steps=many",
            "embed.steps: input should be a valid integer, got 'many'",
            "give a valid",
        ),
        ("--set measure.scores=nope", "measure.scores: unknown scores 'nope'", "choose from: "),
        (
            "--set measure.identity=dlib --set measure.landmarks=none",
            "measure: identity needs landmarks",
            "give a valid",
        ),
        (
            '--set edit.edits=[{"direction":"smile","rows":1}]',
            "unknown setting edit.edits.0.rows",
            "valid keys: strengths, label, direction",
        ),
        ("--set seed=[1", "--set 'seed=[1': the value is not valid YAML", "put text with"),
        ("--set seed=1 --set seed.a=1", "--set 'seed.a=1': seed was already", "leave out one"),
        ("--set embed=3", "embed: expected settings", "write for example `name: "),
        ("--set embed.name=no_package:Class", "embed 'no_package:Class' cannot", "give it as"),
        ("--preset nope", "unknown preset 'nope'", "choose from: "),
        ("-c LIST", "LIST: expected settings as `key: value`", "write for example `seed: 1`"),
        ("-c BROKEN", "BROKEN: it is not valid YAML", "correct the file"),
    ],
)
def test_a_wrong_setting(
    small_run: Any, tmp_path: Path, words: str, reason: str, way_out: str
) -> None:
    files = {"LIST": tmp_path / "list.yaml", "BROKEN": tmp_path / "broken.yaml"}
    for (name, file), content in zip(files.items(), ("- 1", "a: ["), strict=True):
        file.write_text(content)
        reason = reason.replace(name, str(file))
    command = f"plan --dataset DATA --gpus 0 --out OUT {words}"
    places = {"DATA": small_run.photographs, "OUT": tmp_path / "out"}
    told = mistaken(command, 2, "", **places, **files)
    assert told[0].startswith(reason)
    assert told[1].startswith(way_out)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("render RUN --all --out OUT --edit nope=1", ""),
        ("edits sweep RUN --edit nope=1 --gpus 0 --out OUT", "edit.edits: "),
    ],
)
def test_an_unknown_direction(small_run: Any, tmp_path: Path, command: str, what: str) -> None:
    told = mistaken(command, 2, "", RUN=small_run.out, OUT=tmp_path / "out")
    assert told[0] == f"{what}unknown direction 'nope'"
    assert told[1].startswith("choose from: ")


@pytest.mark.parametrize("command", MODELS)
def test_a_missing_model(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))
    mistaken(command, 1, "with: dhr-batch models pull", OUT=tmp_path / "out")


@pytest.mark.parametrize("below", ["", "out", "out/deep"])
@pytest.mark.parametrize("command", WRITES)
def test_a_place_that_is_a_file_or_below_one(
    small_run: Any, run_with_edits: Path, tmp_path: Path, command: str, below: str
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    bench = {"datasets": [str(small_run.photographs)], "embedders": {"w": {"settings": {}}}}
    (tmp_path / "bench.yaml").write_text(json.dumps(bench))
    run = small_run.out if command.startswith("edits sweep") else run_with_edits
    places = {"RUN": run, "DATA": small_run.photographs, "BENCH": tmp_path / "bench.yaml"}
    said = mistaken(command, 2, "", **places, OUT=file / below)
    assert said == (f"{file}: it is a file", "give a folder\n")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("command", WRITTEN_AT_ONCE)
def test_a_place_without_permission_to_write(
    small_run: Any,
    run_with_edits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    # Tests may run as root, to whom every folder is open.
    locked, mkdir = tmp_path / "locked", os.mkdir

    def denied(path: Any, *args: Any, **options: Any) -> None:
        if Path(path).is_relative_to(locked):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", denied)
    bench = {"datasets": [str(small_run.photographs)], "embedders": {"w": {"settings": {}}}}
    (tmp_path / "bench.yaml").write_text(json.dumps(bench))
    run = small_run.out if command.startswith("edits sweep") else run_with_edits
    places = {"RUN": run, "DATA": small_run.photographs, "BENCH": tmp_path / "bench.yaml"}
    reason, way_out = mistaken(command, 1, "", **places, OUT=locked / "out")
    assert reason.startswith(str(locked))
    assert reason.endswith(": Permission denied")
    assert way_out == "check the path and its permissions, or choose another one\n"


def test_a_cache_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    monkeypatch.setenv("DHR_BATCH_HOME", str(file / "home"))
    mistaken("models pull portraits", 1, "Not a directory")
    assert file.read_text() == "mine"


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*words, name))
    else:
        yield " ".join(words)


@pytest.mark.parametrize("command", list(commands(main)))
def test_an_unknown_option(command: str) -> None:
    reason, way_out = mistaken(f"{command} --no-such-option", 2, "--no-such-option")
    assert reason.startswith("No such option")
    assert way_out == f"see: main {command} --help\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("this"), 2),
        (CommandError("this"), 1),
        (StorageError("this"), 1),
        (OSError("this"), 1),
        (UnknownName("this"), 2),
    ],
)
def test_one_text_is_a_whole_error(error: Exception, code: int) -> None:
    @click.command(cls=Command)
    def command() -> None:
        raise error

    result = CliRunner().invoke(command, [])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "Error: this\n")


def test_a_mistake_in_the_program_keeps_its_traceback() -> None:
    @click.command(cls=Command)
    def command() -> None:
        raise ValueError("a bug")

    result = CliRunner().invoke(command, [])
    assert (result.exit_code, type(result.exception)) == (1, ValueError)


def test_ctrl_c_ends_with_130() -> None:
    @click.command(cls=Command)
    def command() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(command, [])
    assert result.exit_code == 130
    # Whether the same command goes on is known only to the command.
    assert result.stderr.splitlines()[-1] == "Error: interrupted"


@pytest.mark.parametrize("kind", [CommandError, Refused, StorageError])
def test_errors_come_whole_from_another_process(kind: type[CommandError]) -> None:
    # A copy is made of the same parts as what another process unpickles.
    error = copy.copy(kind("a", "b", "c"))
    assert type(error) is kind
    assert (error.what, error.why, error.way_out, str(error)) == ("a", "b", "c", "a: b; c")
