"""The recipe in CONTRIBUTING.md, executed word for word on a copy of the package."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dhr_batch

PACKAGES = ("benchmarks", "configs", "fitting", "pipeline", "stages")


def _blocks(document: Path) -> dict[str, str]:
    """Fenced blocks by the file named in their first line; the shell block as `bash`."""
    text = document.read_text("utf-8")
    recipe = text[text.index("## Add a refiner") : text.index("## Add something else")]
    blocks: dict[str, str] = {}
    for language, body in re.findall(r"```(\w+)\n(.*?)```", recipe, re.DOTALL):
        named = re.match(r"# (\S+)\n", body)
        blocks[named.group(1) if named else language] = body[named.end() if named else 0 :]
    return blocks


@pytest.fixture(scope="module")
def copy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `dhr_batch`, changed as the recipe says, and the YAML file."""
    blocks = _blocks(root / "CONTRIBUTING.md")
    folder = tmp_path_factory.mktemp("contributing")
    package = folder / "dhr_batch"
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(root / name, package / name, ignore=ignored)
    for name in ("__init__.py", "cli.py", "version.py"):
        shutil.copy(root / name, package / name)
    (package / "stages" / "refine" / "toy.py").write_text(blocks["stages/refine/toy.py"], "utf-8")
    registry = package / "stages" / "registry.py"
    before = registry.read_text("utf-8")
    after, count = re.subn(r'"refine": \{', rf"\g<0>{blocks['stages/registry.py']}", before)
    assert count == 1
    registry.write_text(after, "utf-8")
    (folder / "toy.yaml").write_text(blocks["toy.yaml"], "utf-8")
    return folder


@pytest.fixture(scope="module")
def dataset(copy: Path) -> Path:
    faces = copy / "faces"
    faces.mkdir()
    for n, colour in enumerate(((200, 140, 110), (90, 70, 160))):
        ramp = np.linspace(0.4, 1, 64)[:, None, None]
        pixels = np.broadcast_to(ramp * np.array(colour), (64, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(faces / f"{n}.png")
    description = copy / "faces.yaml"
    description.write_text("name: faces\nroot: faces\naligned: true\n", "utf-8")
    return description


@pytest.fixture(scope="module")
def run(root: Path, copy: Path, dataset: Path) -> dhr_batch.pipeline.runs.results.Run:
    command = shlex.split(_blocks(root / "CONTRIBUTING.md")["bash"])
    assert command[:4] == ["dhr-batch", "run", "--dataset", "portraits"]
    command[:4] = [sys.executable, "-m", "dhr_batch.cli", "run", "--dataset", str(dataset)]
    command += ["--gpus", "0", "--out", str(copy / "out"), "--no-report", "--set", "workers=1"]
    # After steps of this length, the random generator leaves the refiner enough to correct.
    steps = ("rates=absolute", "rate=0.07", "w_rate=0.1", "pull=0.05")
    command += [word for step in steps for word in ("--set", f"embed.{step}")]
    environment = os.environ | {"PYTHONPATH": str(copy), "DHR_BATCH_HOME": str(copy / "home")}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr.decode()
    return dhr_batch.open(copy / "out")


def test_the_copy_is_what_is_imported(copy: Path) -> None:
    code = "import dhr_batch.stages.registry as r; print(r.__file__, r.names('refine'))"
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True, timeout=60
    )
    assert done.stdout.decode().startswith(str(copy)), done.stderr.decode()
    assert "'toy'" in done.stdout.decode()


def test_a_run_with_the_new_refiner_fills_the_tables(
    run: dhr_batch.pipeline.runs.results.Run,
) -> None:
    assert run.plan["config"]["refine"] == {"name": "toy", "steps": 30, "rate": 0.05}
    assert run.ids == ["0.png", "1.png"]
    metrics = run.metrics
    assert {"inverted", "refined"} <= set(metrics["stage"])
    assert metrics["model"].str.contains("random weights").all()


def test_the_new_refiner_refines(run: dhr_batch.pipeline.runs.results.Run) -> None:
    table = run.metrics.set_index(["image_id", "stage", "metric"])["value"]
    for image_id in run.ids:
        gain = table[image_id, "refined", "psnr"] - table[image_id, "inverted", "psnr"]
        assert gain > 1
        assert list(run.delta(image_id)) == ["to_img.bias"]
