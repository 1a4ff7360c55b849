"""A finished run for the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dhr_batch.tests.faults import driven


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was made in this process."""
    return driven.finished(tmp_path_factory.mktemp("driven"))


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(source, tmp_path / "run"))
