"""Checkpoints as training scripts write them, and files that only look like checkpoints.

Each test names the folder of the case that it comes from.
"""

from __future__ import annotations

import argparse
import datetime
import enum
import io
import pathlib
import pickle
import sys
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from dhr_batch.cli import main
from dhr_batch.stages.networks.files import checkpoints, weight_files
from dhr_batch.stages.networks.files.inert_pickles import Inert
from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts
from dhr_batch.tests.fuzz_seeds import generator_state


class Mode(enum.Enum):
    FAST = "fast"


class Options(dict):  # type: ignore[type-arg]
    """A dictionary of settings, such as many projects have."""


class Tuned(torch.nn.Module):
    """A generator that is saved as a whole module."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            owner: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner.get_submodule(part)
            owner.register_buffer(last, value)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Classes of a package that is not there when the file is read."""
    module = types.ModuleType("training.of_others")
    for kind in (Mode, Options, Tuned):
        monkeypatch.setattr(kind, "__module__", module.__name__)
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "training", types.ModuleType("training"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def saved(file: Path, content: Any, legacy: bool = False) -> Path:
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file


def converted(file: Path) -> dict[str, str]:
    out = file.with_suffix(".safetensors")
    result = CliRunner().invoke(main, ["models", "convert", str(file), "--out", str(out)])
    assert result.exit_code == 0, result.output
    with safe_open(out, "pt") as stored:
        return dict(stored.metadata())


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_weights_stay_inert(
    tmp_path: Path, foreign: types.ModuleType, legacy: bool
) -> None:
    """Case `checkpoint_with_args`."""
    arguments = argparse.Namespace(size=32, mode=Mode.FAST, out=pathlib.PurePosixPath("/x"))
    beside = {
        "args": arguments,
        "options": Options(a=1),
        "rate": np.float64(0.5),
        "steps": np.arange(3),
        "when": datetime.datetime(2020, 1, 1),
        "seen": Counter("aab"),
        "logs": defaultdict(list, a=[1.0]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "shape": torch.zeros(2, 3).shape,
        "complex": 1j,
        "range": range(3),
    }
    content = {"g": {}, "g_ema": generator_state(), "ada_aug_p": 0.3, **beside}
    file = saved(tmp_path / "snapshot.pt", content, legacy)
    sys.modules.pop("training.of_others")
    assert converted(file)["layout"] == "rosinality"
    assert "training.of_others" not in sys.modules
    found = checkpoints.read(file)
    assert isinstance(found["args"], Inert)
    assert found["args"].named == "argparse.Namespace"
    assert checkpoints.fields(found["args"])["size"] == 32
    assert checkpoints.array(found["steps"]).tolist() == [0, 1, 2]
    assert found["shape"] == (2, 3)


def test_what_can_be_made_is_made_and_named(tmp_path: Path) -> None:
    """Case `checkpoint_without_noise`."""
    file = saved(tmp_path / "g.pt", {"g_ema": generator_state(), "latent_avg": torch.ones(512)})
    about = converted(file)
    assert about["made"].startswith("noise.conv1, noise.convs.0, ")
    assert "w_mean" not in about["made"]
    first = layouts.load(file.with_suffix(".safetensors"))
    assert first.noise("conv1").std() > 0.5
    again, _ = layouts.read_checkpoint(file)
    assert torch.equal(first.noise("convs.3"), again.noise("convs.3"))


def test_prefixes_and_mean_latents_of_other_code(tmp_path: Path) -> None:
    """`module.` of DataParallel, and a mean latent for each row, as e4e and pSp store it."""
    state = {f"module.{name}": value for name, value in generator_state().items()}
    mean = torch.arange(512.0)
    file = saved(tmp_path / "g.pt", {"g_ema": state, "latent_avg": mean.repeat(8, 1)})
    net, layout = layouts.read_checkpoint(file)
    assert layout == "rosinality"
    assert torch.equal(net.w_mean, mean)
    rows = torch.stack([mean, mean + 1])
    net, _ = layouts.read_checkpoint(saved(file, {"g_ema": state, "latent_avg": rows}))
    assert "w_mean" in net.made


@pytest.mark.parametrize("key", ["g_ema", ""])
def test_a_module_that_was_saved_whole_is_read(
    tmp_path: Path, foreign: types.ModuleType, key: str
) -> None:
    module = Tuned(generator_state())
    file = saved(tmp_path / "tuned.pt", {key: module} if key else module)
    assert layouts.read_checkpoint(file)[1] == "rosinality"


def test_another_object_says_what_to_do(tmp_path: Path, foreign: types.ModuleType) -> None:
    file = saved(tmp_path / "tuned.pt", Options(a=1))
    with pytest.raises(layouts.LayoutError, match=r"of_others\.Options.*save its weights: torch"):
        layouts.read_checkpoint(file)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"synthesis.input.freqs": torch.ones(2)}, "it is a StyleGAN3 generator; only StyleGAN2"),
        ({"other": torch.ones(2)}, "not a StyleGAN2 generator: it has no 'conv1.bias'"),
    ],
)
def test_a_network_of_another_kind_is_told(
    tmp_path: Path, state: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(layouts.LayoutError, match=said):
        layouts.read_checkpoint(saved(tmp_path / "g.pt", {"g_ema": state}))


# -------------------------------------------------------------------------------------- damage


def reconstruct(fields: dict[str, Any]) -> None:
    raise AssertionError("nothing is ever rebuilt")


class Net:
    """A module as NVIDIA's pickles have it."""

    def __init__(self, parameters: dict[Any, Any], modules: dict[Any, Any]) -> None:
        self.fields = {"state": {"_parameters": parameters, "_buffers": {}, "_modules": modules}}

    def __reduce__(self) -> tuple[Any, ...]:
        return reconstruct, (self.fields,)


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch_utils.persistence")
    monkeypatch.setattr(reconstruct, "__module__", module.__name__)
    for name in ("__name__", "__qualname__"):
        monkeypatch.setattr(reconstruct, name, "_reconstruct_persistent_obj")
    vars(module)["_reconstruct_persistent_obj"] = reconstruct
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def shared_children() -> Net:
    net = Net({"w": torch.ones(1)}, {})
    for _ in range(30):
        net = Net({}, {"a": net, "b": net})
    return net


def chain() -> Net:
    net = Net({}, {})
    for _ in range(100):
        net = Net({}, {"a": net})
    return net


def nested_key() -> dict[Any, int]:
    value: tuple[Any, ...] = ("x",)
    for _ in range(12):
        value = (value, value)
    return {value: 1}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (shared_children, "more than 20000 modules"),  # case checkpoint_exponential
        (chain, "or 64 levels"),  # case checkpoints_uncaught, deep.pkl
        (lambda: Net({3: torch.ones(1)}, {}), "the name 3"),  # intname.pkl
        (lambda: Net({}, {"a": 5}), "not a pickled network"),
        (nested_key, "nested tuples"),
    ],
)
@pytest.mark.usefixtures("nvidia")
def test_graphs_are_walked_within_bounds(
    tmp_path: Path, make: Callable[[], Any], said: str
) -> None:
    file = tmp_path / "g.pkl"
    file.write_bytes(pickle.dumps({"G_ema": make()}))
    with pytest.raises((layouts.LayoutError, checkpoints.CheckpointError), match=said) as caught:
        layouts.read_checkpoint(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("style.1.weight", torch.ones(1).expand(10**6, 10**6), "repeats a storage of 1"),
        ("conv1.bias", torch.ones(1).expand(10**6), "has shape"),
        ("style.1.weight", torch.ones(512, 0), "has shape"),
        ("style.1.weight", torch.ones(512).to_sparse(), "not a tensor but a torch._utils._rebuild"),
        ("style.1.weight", torch.ones(4, device="meta"), "not a tensor but a torch._utils._rebu"),
        ("style.1.weight", torch.ones(4).long(), "torch.int64, which are no weights"),
        ("style.1.weight", np.ones(4), "not a tensor but a numpy"),
        ("convs.8.activate.bias", torch.ones(2), "missing or unknown"),
        (3, torch.ones(1), "is 3, which is no text"),
        ("conv1.activate.bias", torch.ones(1), "has the name of another tensor"),
    ],
)
def test_what_is_no_dense_tensor_is_refused(
    tmp_path: Path, name: Any, value: Any, said: str
) -> None:
    """Case `checkpoints_uncaught`, stride0.pt."""
    file = saved(tmp_path / "g.pt", {"g_ema": generator_state() | {name: value}})
    with pytest.raises((layouts.LayoutError, checkpoints.CheckpointError), match=said):
        layouts.read_checkpoint(file)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04r\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"(" * 100_000,
        b"}" * 100_000 + b".",
        b"\x80\x04]\x94h\x00b.",
        b"\x80\x04]h\x00a.",
        b"a.",
        b"\x80\x04N(Nu.",
    ],
)
def test_pickles_of_a_few_bytes_take_no_memory(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "g.pkl"
    file.write_bytes(content)
    with pytest.raises((layouts.LayoutError, checkpoints.CheckpointError)):
        layouts.read_checkpoint(file)


def test_a_storage_is_not_taken_out_more_often_than_it_is_there(tmp_path: Path) -> None:
    """Case `checkpoint_exponential`: entries of an archive that lie in the same place."""
    stream = io.BytesIO()
    torch.save({str(n): torch.full((1000,), float(n)) for n in range(20)}, stream)
    with zipfile.ZipFile(stream) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    file = tmp_path / "g.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            kind = zipfile.ZIP_STORED if name.endswith("data.pkl") else zipfile.ZIP_DEFLATED
            archive.writestr(name, data, kind)
    with pytest.raises(checkpoints.CheckpointError, match=r"unpacks to more than|is compressed"):
        checkpoints.read(file)


def test_mapped_tensors_are_those_that_are_read(tmp_path: Path) -> None:
    state = {"a": torch.randn(30, 20), "b": torch.arange(6).reshape(2, 3).T, "c": torch.ones(2) > 0}
    file = saved(tmp_path / "w.pt", {"state_dict": OrderedDict(state)})
    for mapped in (False, True):
        found = weight_files.read(file, mapped=mapped)["state_dict"]
        assert all(torch.equal(found[name], value) for name, value in state.items())
