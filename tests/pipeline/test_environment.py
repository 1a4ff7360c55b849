"""Folders, locales and variables of a machine that cannot be used as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from dhr_batch.tests.pipeline.refusals import PLAN, ended, png


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("place", ["~no-such-user/x", "loop", "file", "relative"])
def test_odd_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    monkeypatch.setenv("DHR_BATCH_HOME", place)
    assert ended("datasets", "list").exit_code == 0
    assert ended("models", "list").exit_code == 0
    if place in ("loop", "file"):
        assert ended("models", "pull", "portraits").exit_code == 1


def test_odd_places_of_runs(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "a.png").write_bytes(png())
    (tmp_path / "loop").symlink_to("loop")
    for place in ("~no-such-user/x", "loop/x"):
        assert ended(*PLAN.split(), photographs, "--out", place).exit_code in (0, 1)


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = ended("datasets", "list")
    assert result.exit_code == 2
    assert "the current folder: it cannot be used" in result.stderr


def test_ids_do_not_depend_on_the_locale(tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "\u00fc.png").write_bytes(png())
    with tarfile.open(tmp_path / "names.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(tmp_path / "names" / "\u00fc.png", "\u00fc.png")
    code = "from dhr_batch.pipeline.datasets import listing, items; import sys\n"
    code += "for place in sys.argv[1:]:\n"
    code += "    found = listing.scan(place, items.Rules(frozenset({'.png'}))).items\n"
    code += "    print([ascii(i.image_id) for i in found], len(listing.read_bytes(found[0])))"
    command = [sys.executable, "-c", code, str(tmp_path / "names"), str(tmp_path / "names.tar")]
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.count(repr(ascii("\u00fc.png"))) == 2, done.stdout


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e30", "soon"])
def test_a_patience_that_is_none(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setenv("DHR_BATCH_STORAGE_PATIENCE", seconds)
    result = ended(*PLAN.split(), "s3://bucket-of-a-test/x")
    assert result.exit_code == 2
    assert f"DHR_BATCH_STORAGE_PATIENCE={seconds}" in result.stderr
