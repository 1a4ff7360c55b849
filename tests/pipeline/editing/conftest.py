"""A photograph, and the settings with which stages without networks edit it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from dhr_batch.tests.pipeline.edited import NAMES, picture


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that imports Ray fails. What the command sets in the environment is undone."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    file = tmp_path / "in" / "photo.png"
    file.parent.mkdir()
    picture(140, 120).save(file)
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(NAMES))
    return file
