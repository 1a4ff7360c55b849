"""What is built and installed: the wheel's content, and the command from a fresh environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PACKAGES = ("benchmarks", "configs", "fitting", "pipeline", "stages")
MODULES = ("__init__.py", "__main__.py", "cli.py", "py.typed", "version.py")
PICTURES = (".avif", ".gif", ".heic", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PROJECT = (*MODULES, "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def sources(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone has: `build/` of this checkout would add deleted modules to the wheel."""
    copy = tmp_path_factory.mktemp("sources") / "checkout"
    copy.mkdir()
    for name in (*PACKAGES, "licenses", "tests"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PROJECT:
        shutil.copy(root / name, copy / name)
    return copy


def pip(*words: object) -> None:
    """Without a network: what is needed is installed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


LOCAL = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", *LOCAL, "--wheel-dir", folder, sources)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(sources: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    tops = {name.split("/")[0] for name in names}
    info = next(top for top in tops if top.endswith(".dist-info"))
    assert tops == {"dhr_batch", info}
    assert {f"{info}/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= names
    files = {
        path.relative_to(sources).as_posix()
        for package in PACKAGES
        for path in (sources / package).rglob("*")
        if path.is_file() and (package == "configs" or path.suffix == ".py")
    }
    expected = {f"dhr_batch/{name}" for name in files | set(MODULES)}
    packed = {name for name in names if name.startswith("dhr_batch/")}
    megabytes = wheel.stat().st_size / 1e6
    print(f"\n{wheel.name}: {megabytes:.1f} MB, {len(packed)} files")
    assert packed == expected
    assert megabytes < 10


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment that finds the dependencies, but not this checkout."""
    # Its own pip would bring an old setuptools with it.
    venv = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")]
    subprocess.run(venv, check=True, timeout=300)
    python = tmp_path / "venv" / "bin" / "python"
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    packages = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    # `.pth` files in the folder that is added, as those of editable installs, have no effect.
    dependencies = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}
    Path(packages, "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    return python


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_a_fresh_environment_runs_the_command(
    environment: Path, sources: Path, wheel: Path, editable: bool, tmp_path: Path
) -> None:
    pip("--python", environment, "install", *LOCAL, *(("-e", sources) if editable else (wheel,)))
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(2):
        blocks = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(photographs / f"{number}.png")
    (tmp_path / "d.yaml").write_text(f"name: d\nroot: {photographs}\naligned: true\n")
    words = ["run", "--dataset", "d.yaml", "--preset", "tiny", "--gpus", "0", "--out", "out"]
    words += ["--set", "edit.edits=[]", "--json"]
    hidden = ("PYTHONPATH", "PYTHONHOME", "RAY_ADDRESS")
    env = {name: value for name, value in os.environ.items() if name not in hidden}

    def call(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = call(str(environment), "-c", "import dhr_batch; print(dhr_batch.__file__)")
    home = sources if editable else environment.parent.parent
    assert Path(where.strip()).is_relative_to(home)
    outcome = json.loads(call(str(environment.with_name("dhr-batch")), *words))
    assert (outcome["images"], outcome["done"]) == (2, 2)
    assert (tmp_path / outcome["report"]).is_file()
    parts = sorted(path.name for path in (tmp_path / "out" / "latents").iterdir())
    assert all(re.fullmatch(r"part-\d{5}\.parquet", name) for name in parts)
    assert len(parts) == 2


def test_the_repository_holds_pictures_of_the_documentation_alone(root: Path) -> None:
    """A photograph of a dataset or of a package must never be committed by mistake."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        pytest.skip("not a clone")
    command = [git, "-c", "safe.directory=*", "-C", root, "ls-files"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    pictures = [name for name in names if name.lower().endswith(PICTURES)]
    assert pictures
    assert [name for name in pictures if Path(name).parent != Path("docs")] == []
