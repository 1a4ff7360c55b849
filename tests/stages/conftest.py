"""Fixtures of the stage tests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dhr_batch.stages.context import Context
from dhr_batch.stages.networks.encoders.psp import Encoder
from dhr_batch.stages.networks.perceptual import Perceptual
from dhr_batch.tests import filled
from dhr_batch.tests.awkward import write_awkward_folder


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """The portrait shipped with scikit-image, uint8 [512, 512, 3]."""
    from skimage.data import astronaut

    return astronaut()


@pytest.fixture
def context() -> Context:
    """A context of tiny networks in double precision, without any model."""

    def no_models(name: str) -> Path:
        raise AssertionError(f"asked for {name}")

    made = Context("cpu", "tiny", no_models)
    made.network("generator", "tiny").double()
    made.network("perceptual", "tiny").double()
    return made


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


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Tensor]], Path]:
    """Writer of a TorchScript archive with a state dict: (state) -> file."""

    def write(state: dict[str, Tensor]) -> Path:
        file = tmp_path_factory.mktemp("scripted") / "farl.pt"
        torch.jit.save(filled.script(state), file)
        return file

    return write


class Golden:
    """A fixture: its filled state dict, inputs and expected outputs."""

    def __init__(self, folder: Path, name: str, fill: Callable[..., np.ndarray]) -> None:
        self.arrays = np.load(folder / f"{name}.npz")
        self.facts: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        self._fill = fill

    def state(self) -> dict[str, Tensor]:
        return {k: self.tensor(k, shape) for k, shape in self.facts["state_dict"]}

    def tensor(self, key: str, shape: Sequence[int]) -> Tensor:
        try:
            return torch.as_tensor(self._fill(key, shape, self.facts["fill_rules"]))
        except LookupError:
            taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
            return taps[:, None] * taps / 64

    def input(self, name: str) -> Tensor:
        about = self.facts["inputs"][name]
        rules = [[".", about.get("scale", 1), about.get("offset", 0), "n"]]
        return torch.from_numpy(self._fill(about["key"], about["shape"], rules))

    def draw(self, key: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers."""
        return torch.from_numpy(self._fill(key, shape))

    def perceptual(self) -> Perceptual:
        """LPIPS with the fixture's numbers in place of weights."""
        weights = {}
        for key, shape in self.facts["lpips_state_dict"]:
            name = re.sub(r"^\w+\.net\.layers\.", "features.", key)
            name = re.sub(r"^\w+\.lin\.(\d)\.1\.", r"lin\1.model.1.", name)
            if not key.endswith(("net.mean", "net.std")):
                weights[name] = self.tensor(key, shape)
        return Perceptual(f"lpips_{key.partition('.')[0]}", weights)

    def check(self, name: str, value: Tensor) -> None:
        want = self.arrays[name]
        limit = self.facts["outputs"][name]["tolerance_abs"]
        assert np.abs(value.detach().numpy().reshape(want.shape) - want).max() <= limit, name


@pytest.fixture(scope="session")
def golden_case(golden: Path, fill: Callable[..., np.ndarray]) -> Callable[[str], Golden]:
    """Return a golden fixture by its name."""
    return lambda name: Golden(golden, name, fill)
