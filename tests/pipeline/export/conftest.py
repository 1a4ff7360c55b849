"""The run that is exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from dhr_batch.tests.pipeline.exported import write_photographs, write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("export")
    return write_run(folder / "run", write_photographs(folder / "photographs"))
