"""The doctor finds what is broken and says what to do."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from dhr_batch.cli import main
from dhr_batch.pipeline.models import catalogue, doctor


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


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path))

    def refuse(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = doctor._cache_folder()
    assert check.state == "broken"
    assert "DHR_BATCH_HOME" in check.way_out
