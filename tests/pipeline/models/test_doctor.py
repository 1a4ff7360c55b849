"""The doctor finds what is broken and says what to do."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from dhr_batch.cli import main
from dhr_batch.pipeline.models import catalogue, doctor


class Usage(NamedTuple):
    free: float


def by_name(found: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in found}


def test_missing_models_are_broken_with_their_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path))
    result = CliRunner().invoke(main, ["doctor", "--json"])
    found = {row["name"]: row for row in json.loads(result.output)}
    assert result.exit_code == 1
    assert found["model dlib-landmarks68"]["state"] == "broken"
    way = "dhr-batch models pull dlib-landmarks68"
    assert found["model dlib-landmarks68"]["way_out"] == way
    assert found["torch"]["state"] == "ok"
    assert str(tmp_path) in found["cache"]["found"]
    assert "lpips-vgg-backbone" in found["further models"]["found"]


def test_everything_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = [
        s.model_copy(update={"state": "ready", "path": "x"}) for s in catalogue.model_statuses()
    ]
    monkeypatch.setattr(catalogue, "model_statuses", lambda: ready)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "broken" not in result.output


def test_old_and_absent_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: "11.3.0")
    check = doctor._version("pillow")
    assert (check.state, check.way_out) == ("broken", "pip install 'pillow>=12.2'")

    def absent(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", absent)
    assert doctor._version("ray").way_out == "pip install ray"


@pytest.mark.parametrize(
    ("place", "name", "value", "check", "state", "way_out"),
    [
        ("platform", "python_version", lambda: "3.10.4", "_python", "broken", "Python 3.11"),
        ("os", "sysconf", lambda name: 1000, "_memory", "note", "at least 2 GB"),
        ("resource", "getrlimit", lambda what: (256, 256), "_open_files", "broken", "ulimit -n"),
        ("tempfile", "gettempdir", lambda: "/nowhere", "_temporary", "broken", "set TMPDIR"),
        ("tempfile", "gettempdir", lambda: "/" + 99 * "x", "_temporary", "broken", "set TMPDIR"),
        ("os", "access", lambda *of: False, "_sockets", "broken", "set RAY_TMPDIR"),
        ("os", "access", lambda *of: False, "_home_folder", "note", "set HOME"),
        ("shutil", "disk_usage", lambda of: Usage(2e8), "_temporary", "broken", "free some space"),
        ("shutil", "disk_usage", lambda of: Usage(1e8), "_shared_memory", "note", "--shm-size"),
    ],
)
def test_what_would_fail_later_has_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    name: str,
    value: Any,
    check: str,
    state: str,
    way_out: str,
) -> None:
    assert getattr(doctor, check)().state == "ok"
    monkeypatch.setattr(f"{place}.{name}", value)
    found = getattr(doctor, check)()
    assert (found.state, way_out in found.way_out) == (state, True), found


def test_a_compiled_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "COMPILED", {"no_such_module": "its-package"})
    (check,) = doctor._compiled()
    assert (check.state, "its-package" in check.way_out) == ("broken", True)


@pytest.mark.parametrize(("built", "way_out"), [("13.0", "update the driver"), (None, "with CUDA")])
def test_a_gpu_that_torch_cannot_use(
    monkeypatch: pytest.MonkeyPatch, built: str | None, way_out: str
) -> None:
    cuda = SimpleNamespace(is_available=lambda: False)
    torch = SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=built))
    monkeypatch.setattr(doctor, "import_module", lambda name: torch)
    monkeypatch.setattr(doctor, "_nvidia_driver", lambda: "470.1")
    check = doctor._devices()
    assert (check.state, way_out in check.way_out) == ("note", True)
    assert "470.1" in check.found


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path))

    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = doctor._cache_folder()
    assert check.state == "broken"
    assert "DHR_BATCH_HOME" in check.way_out
