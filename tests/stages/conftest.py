"""Fixtures of the stage tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dhr_batch.benchmarks.awkward import write_awkward_folder
from dhr_batch.stages.networks.encoders import Encoder


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """The portrait shipped with scikit-image, uint8 [512, 512, 3]."""
    from skimage.data import astronaut

    return astronaut()


@pytest.fixture(scope="session")
def awkward_folder() -> Callable[[Path, np.ndarray], dict[str, str | None]]:
    """Writer of the folder of awkward inputs: (folder, face) -> name -> expected error class."""
    return write_awkward_folder


@pytest.fixture(scope="session")
def narrow_encoder() -> Callable[..., dict[str, Any]]:
    """Maker of a checkpoint of the published layout, an eighth as wide, with random weights."""

    def make(**layout: Any) -> dict[str, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Encoder(width=8, **layout)
            mean = torch.randn(net.heads, 512)
        state = {f"encoder.{key}": value for key, value in net.state_dict().items()}
        return {"state_dict": state, "latent_avg": mean}

    return make
