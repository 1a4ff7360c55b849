"""Fixtures of the stage tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dhr_batch.benchmarks.awkward import write_awkward_folder


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """The portrait shipped with scikit-image, uint8 [512, 512, 3]."""
    from skimage.data import astronaut

    return astronaut()


@pytest.fixture(scope="session")
def awkward_folder() -> Callable[[Path, np.ndarray], dict[str, str | None]]:
    """Writer of the folder of awkward inputs: (folder, face) -> name -> expected error class."""
    return write_awkward_folder
