"""Fixtures shared by all tests. Tests that need photographs or models skip visibly without them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Small tensors: a second thread per operation costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def golden() -> Path:
    """Number files made by published implementations."""
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Photographs and directions that lie beside the project and are not part of it."""
    folder = Path(os.environ.get("DHR_BATCH_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set DHR_BATCH_SHARED to the folder with the test photographs")
    return folder


@pytest.fixture(scope="session")
def models() -> Callable[[str], Path]:
    """Path of a pulled model; skips where it is not in the cache."""
    from dhr_batch.pipeline import models as registry

    def find(name: str) -> Path:
        try:
            return registry.path(name)
        except registry.ModelMissing as error:
            pytest.skip(str(error))

    return find
