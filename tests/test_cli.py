"""The command line: help without heavy imports, exit codes, plans."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dhr_batch.cli import main

HELP = """
import sys, time
began = time.perf_counter()
import click
from click.testing import CliRunner
from dhr_batch.cli import main

def commands(command, words):
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), [*words, name])

for words in commands(main, []):
    result = CliRunner().invoke(main, [*words, "--help"], terminal_width=80)
    assert result.exit_code == 0, (words, result.output, result.exception)
    assert "Usage: main " + " ".join(words) in result.output, result.output
    usage, *lines = result.output.splitlines()
    assert len(usage) <= 80, usage
    for line in lines:
        assert len(line) <= 80 and not line.endswith("..."), (words, line)
    print("help", *words)
print("seconds", time.perf_counter() - began)
print("modules", *sys.modules)
"""


def dhr(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-c", HELP]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *commands, seconds, modules = done.stdout.splitlines()
    print(f"\n{len(commands)} commands: {float(seconds.split()[1]):.2f} s with their imports")
    assert {"help run", "help models pull", "help edits fit"} <= set(commands)
    assert not {"torch", "ray", "pyarrow", "skimage", "sklearn", "cv2"} & set(modules.split())


def test_dry_run_prints_the_plan_and_touches_nothing(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "--dataset", str(photographs), "--preset", "tiny", "--gpus", "0", "--dry-run"]
    result = dhr(*words)
    assert result.exit_code == 0, result.output
    assert "2 images, 2 shards" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
    plan = json.loads(dhr(*words, "--json").stdout)
    assert plan["shards"] == [["a.png"], ["b.png"]]
    assert plan["config"]["embed"]["steps"] == 2


def test_workers_share_gpus(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhr_batch.pipeline.planning.devices.physical_gpus", lambda: 1)
    words = ["--preset", "tiny", "--gpus", "1", "--workers-per-gpu", "2", "--dry-run"]
    result = dhr("run", "--dataset", str(photographs), *words)
    assert result.exit_code == 0, result.output
    assert "1 GPU, 2 workers" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "embed.stps=3"], "unknown setting embed.stps\nHint: did you mean 'steps'?"),
        (["--set", "refine.name=x"], "choose from: "),
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--set", "refine.name=nowhere:Refiner"], "cannot be imported"),
        (["--workers-per-gpu", "0"], "Invalid value"),
        (["--device", "tpu"], "Invalid value"),
        (["--device", "cuda"], "--device cuda with --gpus 0"),
        (["--set", "image_timeout=0"], "image_timeout"),
        (["--limit", "0"], "Invalid value"),
        (["--progress", "loud"], "Invalid value"),
        (["--dataset", "celebhq"], "did you mean 'celebahq'?"),
        (["--dataset", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--dataset", "./nowhere"], "./nowhere: it does not exist"),
        (["--dataset", "photos.zip"], "photos.zip: it does not exist"),
        (["--dataset", "photos/*.jpg"], "wildcards in names are not expanded"),
        (["--dataset", __file__], "`dhr-batch edit` takes single photographs"),
        (["--dataset", "https://host/photo.jpg"], "download them first"),
        (["--dataset", ""], "an empty text after --dataset: it names nothing"),
        (["--out", __file__, "--dataset", "nowhere"], f"{__file__}: it is a file"),
        (["photos"], "give the photographs as --dataset FOLDER"),
        (["--generator", "tiny"], "give it as a setting: --set generator=VALUE"),
        (["--edit", "smile=2"], "--set edit.edits='[{direction: smile}]'"),
        (["--set", "edit.edits=[{direction: smile, unit: deg}]"], "smile takes no degrees"),
    ],
)
def test_wrong_words_exit_with_2(photographs: Path, words: list[str], message: str) -> None:
    result = dhr("run", "--dataset", str(photographs), "--gpus", "0", "--dry-run", *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_no_dataset_lists_them() -> None:
    result = dhr("run", "--gpus", "0")
    assert result.exit_code == 2
    assert "portraits" in result.stderr


def test_absent_dataset_folder_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path))
    monkeypatch.delenv("DHR_BATCH_DATA", raising=False)
    result = dhr("run", "--dataset", "celebahq", "--gpus", "8")
    assert result.exit_code == 2
    assert "CelebAMask-HQ" in result.stderr
    assert "DHR_BATCH_DATA" in result.stderr


def test_absent_gpus_say_what_to_do(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhr_batch.pipeline.planning.devices.physical_gpus", lambda: 0)
    result = dhr("run", "--dataset", str(photographs), "--preset", "tiny", "--gpus", "8")
    assert result.exit_code == 2
    assert "--gpus 0" in result.stderr


def test_absent_devices_say_what_to_do(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhr_batch.stages.device.count", lambda kind: int(kind == "cpu"))
    words = ["run", "--dataset", str(photographs), "--preset", "tiny"]
    for kind in ("cuda", "mps", "xpu"):
        result = dhr(*words, "--device", kind)
        assert result.exit_code == 2
        assert f"--device {kind}: torch finds no such device" in result.stderr
        assert "choose from: cpu" in result.stderr
    result = dhr(*words, "--device", "mps", "--gpus", "1")
    assert result.exit_code == 2
    assert "--device mps: torch finds no such device" in result.stderr
    result = dhr(*words, "--device", "xpu", "--address", "local")
    assert "give it with --gpus" in result.stderr
    out = tmp_path / "x.npz"
    result = dhr("edits", "sefa", "--generator", "tiny", "--out", str(out), "--device", "mps")
    assert result.exit_code == 2
    assert "--device mps" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("edits", "sefa", "--out", "{}/mine.npz"),
        ("edits", "ganspace", "--out", "{}/mine.npz"),
        ("edits", "fit", "--name", "mine", "--out", "{}"),
        ("edits", "text-features", "--clip", __file__, "--target", "beard", "--out", "{}/mine.npz"),
        ("models", "convert", __file__, "--out", "{}/mine.safetensors"),
    ],
)
def test_files_of_others_are_not_replaced(words: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("mine.npz", "mine.yaml", "mine.safetensors"):
        (tmp_path / name).write_text("of another")
    result = dhr(*(word.format(tmp_path) for word in words))
    assert result.exit_code == 2, result.exception
    assert re.search(r"mine\.\w+: it exists\nHint: delete it", result.stderr)
    assert {file.read_text() for file in tmp_path.iterdir()} == {"of another"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sefa", "--generator", "tinny"], "unknown generator 'tinny' (did you mean 'tiny'?)"),
        (["sefa", "--generator", "no.safetensors"], "no.safetensors: it does not exist"),
        (["fit", "--generator", "mine.pkl"], "dhr-batch models convert"),
        (["fit", "--generator", "tinny"], "unknown generator 'tinny'"),
        (["fit", "--scorer", "landmark"], "unknown scorer 'landmark' (did you mean 'landmarks'?)"),
    ],
)
def test_unknown_generators_and_scorers_are_refused(
    words: list[str], said: str, tmp_path: Path
) -> None:
    result = dhr("edits", *words, "--out", str(tmp_path / "mine.npz"))
    assert result.exit_code == 2, result.exception
    assert said in result.stderr


def test_the_device_is_recorded(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"cpu": 1, "cuda": 2, "mps": 1, "xpu": 3}
    monkeypatch.setattr("dhr_batch.stages.device.count", counts.get)
    words = ["run", "--dataset", str(photographs), "--preset", "tiny", "--dry-run"]
    for kind, gpus in {"mps": 1, "xpu": 3, "cpu": 0}.items():
        plan = json.loads(dhr(*words, "--device", kind, "--json").stdout)
        assert (plan["config"]["device"], plan["config"]["gpus"]) == (kind, gpus)
    assert "1 GPU (mps), 1 worker" in dhr(*words, "--device", "mps").output
    assert json.loads(dhr(*words, "--gpus", "0", "--json").stdout)["config"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "Usage: dhr-batch [OPTIONS] COMMAND"),
        (["--version"], 0, "dhr-batch, version"),
        (["report", "."], 2, "is not a run"),
        (["run", "--no-such-option"], 2, "see: dhr-batch run --help"),
    ],
)
def test_the_module_is_run_as_the_command(
    tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    command = [sys.executable, "-m", "dhr_batch", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in (done.stderr if code else done.stdout)


def test_shipped_directions_and_other_edits_are_listed() -> None:
    lines = dhr("edits", "list").output.splitlines()
    assert any(line.startswith("smile") and "standard deviation" in line for line in lines)
    assert any(
        re.match(r"eyes +ganspace ganspace-ffhq, component 54, rows \[7, 8\]", x) for x in lines
    )
    assert any("combined smile=1+mouth_open=0.62, strengths [-2, -1, 1, 2]" in x for x in lines)
    found = json.loads(dhr("edits", "list", "--json").output)
    assert found["beard"]["strengths"] == [-20]
    assert found["smile"]["unit"]


def test_report_of_a_place_without_a_run_is_refused(tmp_path: Path) -> None:
    result = dhr("report", str(tmp_path))
    assert result.exit_code == 2
    assert "is not a run" in result.stderr
