"""Nothing inside a checkpoint is ever run, and what a checkpoint needs is read all the same."""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import json
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import Tensor

from dhr_batch.cli import main
from dhr_batch.stages.networks.files.checkpoints import CheckpointError, array, read, read_script
from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2

WIDTHS = (8, 6, 5, 4)


def random_net() -> StyleGAN2:
    net = StyleGAN2(WIDTHS, mapping_layers=2)
    draw = torch.Generator().manual_seed(0)
    for tensor in layouts.named_tensors(net).values():
        tensor.data.copy_(torch.randn(tensor.shape, generator=draw))
    return net


def filter_taps() -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return taps[:, None] * taps / 64


# ------------------------------------------------------------------- checkpoints as published


def rosinality_file(file: Path, net: StyleGAN2, legacy: bool = False) -> Path:
    """A checkpoint of rosinality's layout that holds `net`."""
    state: dict[str, Tensor] = {"convs.0.conv.blur.kernel": 4 * filter_taps()}
    for name, value in layouts.named_tensors(net).items():
        layer, _, last = name.rpartition(".")
        if name.startswith("mapping."):
            key = f"style.{int(name.split('.')[1]) + 1}.{last}"
            value = value / 0.01 * (512**0.5 if last == "weight" else 1)
        elif name == "input":
            key, value = "input.input", value[None]
        elif name.startswith("noise."):
            index = 0 if last == "conv1" else int(last) + 1
            key, value = f"noises.noise_{index}", value[None, None]
        elif last == "noise_strength":
            key = f"{layer}.noise.weight"
        elif layer.endswith("modulation"):
            key = f"{layer.removesuffix('.modulation')}.conv.modulation.{last}"
        elif last == "weight":
            key = f"{layer}.conv.weight"
            value = value[None] if value.ndim == 4 else value[None, :, :, None, None]
        elif "rgb" in layer:
            key, value = name, value[None, :, None, None]
        else:
            key = f"{layer}.activate.bias"
        if name != "w_mean":
            state[key] = value.clone()
    content = {"g_ema": state, "latent_avg": net.w_mean.clone()}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file


class Persistent:
    """Pickles as NVIDIA's persistent classes do: source code, class name and state."""

    reconstruct: Callable[..., Any]
    source = ""

    def __init__(self, state: dict[str, Any]) -> None:
        self.fields = state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": self.source}
        return type(self).reconstruct, ({**meta, "class_name": "Net", "state": self.fields},), None


@pytest.fixture
def nvidia_modules(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Modules of NVIDIA's that a pickle refers to, for as long as it is written."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the real function would run the source code")

    class EasyDict(dict):  # type: ignore[type-arg]
        pass

    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    function: Any = _reconstruct_persistent_obj
    function.__module__, function.__qualname__ = persistence.__name__, function.__name__
    EasyDict.__module__, EasyDict.__qualname__ = util.__name__, "EasyDict"
    vars(persistence)["_reconstruct_persistent_obj"] = function
    vars(util)["EasyDict"] = EasyDict
    monkeypatch.setattr(Persistent, "reconstruct", staticmethod(function), raising=False)
    for module in (persistence, util):
        parent = module.__name__.partition(".")[0]
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return util


def nvidia_state(net: StyleGAN2) -> dict[str, Tensor]:
    """The state dict of `net` under NVIDIA's names."""
    state: dict[str, Tensor] = {"synthesis.b8.resample_filter": filter_taps()}
    for name, value in layouts.named_tensors(net).items():
        last = name.rpartition(".")[2]
        if name.startswith("mapping."):
            value = value / 0.01 * (512**0.5 if last == "weight" else 1)
            key = f"mapping.fc{name.split('.')[1]}.{last}"
        elif name in ("input", "w_mean"):
            key = {"input": "synthesis.b4.const", "w_mean": "mapping.w_avg"}[name]
        else:
            layer = name.removeprefix("noise.").split(".")
            rest = ".".join(layer[1:] if layer[0] in ("conv1", "to_rgb1") else layer[2:])
            if layer[0] == "conv1":
                place = "b4.conv1"
            elif layer[0] == "to_rgb1":
                place = "b4.torgb"
            elif layer[0] == "to_rgbs":
                place = f"b{8 << int(layer[1])}.torgb"
            else:
                place = f"b{8 << int(layer[1]) // 2}.conv{int(layer[1]) % 2}"
            rest = "noise_const" if name.startswith("noise.") else rest
            key = f"synthesis.{place}.{rest.replace('modulation', 'affine')}"
            if rest == "noise_strength":
                value = value[0]
            elif place.endswith("torgb") and rest == "weight":
                value = value[:, :, None, None]
        state[key] = value.clone()
    return state


def persistent(state: dict[str, Tensor], easy: type) -> Persistent:
    """A tree of persistent modules that holds the state dict."""
    own = {k: v for k, v in state.items() if "." not in k}
    buffers = [k for k in own if k in ("w_avg", "noise_const", "resample_filter")]
    children = dict.fromkeys(k.partition(".")[0] for k in state if "." in k)
    return Persistent(
        {
            "training": False,
            "_parameters": OrderedDict(
                (k, torch.nn.Parameter(v)) for k, v in own.items() if k not in buffers
            ),
            "_buffers": OrderedDict((k, own[k]) for k in buffers) | {"none": None},
            "_non_persistent_buffers_set": set(),
            "_modules": OrderedDict(
                (
                    c,
                    persistent(
                        {k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{c}.")},
                        easy,
                    ),
                )
                for c in children
            ),
            "_init_kwargs": easy(w_dim=512),
            "weight_gain": np.float64(0.5),
        }
    )


def nvidia_file(file: Path, net: StyleGAN2, util: types.ModuleType, protocol: int) -> Path:
    """A pickle as NVIDIA publishes them that holds `net`."""
    g_ema = persistent(nvidia_state(net), util.EasyDict)
    content = {"G_ema": g_ema, "augment_pipe": None, "training_set_kwargs": util.EasyDict(path="x")}
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    return file


def assert_same(got: StyleGAN2, want: StyleGAN2) -> None:
    stored = layouts.named_tensors(got)
    for name, tensor in layouts.named_tensors(want).items():
        torch.testing.assert_close(stored[name], tensor, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("legacy", [False, True])
def test_rosinality_checkpoint_converts(tmp_path: Path, legacy: bool) -> None:
    net, out = random_net(), tmp_path / "sub" / "g.safetensors"
    file = rosinality_file(tmp_path / "g.bin", net, legacy)
    about = layouts.convert(file, out)
    assert_same(layouts.load(out), net)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert about == {
        "format": "dhr-batch stylegan2",
        "resolution": "32",
        "layout": "rosinality",
        "source": "g.bin",
        "source_sha256": digest,
    }
    assert sorted(p.name for p in out.parent.iterdir()) == ["g.safetensors"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nvidia_checkpoint_converts_without_its_source(
    tmp_path: Path,
    nvidia_modules: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    protocol: int,
) -> None:
    net, canary = random_net(), tmp_path / "canary"
    monkeypatch.setattr(Persistent, "source", f"open({str(canary)!r}, 'w')")
    file = nvidia_file(tmp_path / "g.pkl", net, nvidia_modules, protocol)
    about = layouts.convert(file, tmp_path / "g.safetensors")
    assert_same(layouts.load(tmp_path / "g.safetensors"), net)
    assert about["layout"] == "nvidia"
    assert not canary.exists()


def test_mean_latent_is_computed_where_it_is_not_published(tmp_path: Path) -> None:
    file = rosinality_file(tmp_path / "g.pt", random_net())
    content = torch.load(file, weights_only=True)
    torch.save({"g_ema": content["g_ema"]}, file)
    net, _ = layouts.read_checkpoint(file)
    expected = random_net()
    expected.set_w_mean()
    torch.testing.assert_close(net.w_mean, expected.w_mean, rtol=1e-3, atol=1e-3)


def test_a_converted_file_holds_nothing_that_depends_on_the_processor(tmp_path: Path) -> None:
    file = rosinality_file(tmp_path / "g.pt", random_net())
    content = torch.load(file, weights_only=True)
    torch.save({"g_ema": content["g_ema"]}, file)
    layouts.convert(file, tmp_path / "g.safetensors")
    with safe_open(tmp_path / "g.safetensors", "pt") as stored:
        assert "w_mean" not in stored.keys()  # noqa: SIM118
    # What is left are copies and products of two numbers, which IEEE 754 rounds alike everywhere.
    net, _ = layouts.read_checkpoint(file)
    assert torch.equal(layouts.load(tmp_path / "g.safetensors").w_mean, net.w_mean)


# -------------------------------------------------------------------------------------- malice


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(canary: Path) -> dict[str, tuple[Any, list[str]]]:
    """Objects whose unpickling creates the canary, and names that give them away."""
    touch = f"touch {canary}"
    return {
        "os.system": (Call(os.system, touch), ["posix.system", "nt.system"]),
        "importlib": (Call(importlib.import_module, "make_canary"), ["importlib.import_module"]),
        "eval": (Call(eval, f"open({str(canary)!r}, 'w')"), ["eval"]),
        "Path.touch": (Call(Path.touch, canary), ["getattr", "pathlib.Path.touch"]),
    }


def torch_zip(pickled: bytes) -> bytes:
    """A torch file whose program is `pickled`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def torch_legacy(pickled: bytes) -> bytes:
    """The same, as torch wrote files before 1.6."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + pickled


WRAPPINGS: dict[str, Callable[[Any], bytes]] = {
    **{f"protocol {p}": lambda evil, p=p: pickle.dumps({"G_ema": evil}, p) for p in range(6)},
    "torch zip": lambda evil: torch_zip(pickle.dumps({"g_ema": evil}, 2)),
    "torch legacy": lambda evil: torch_legacy(pickle.dumps({"g_ema": evil}, 2)),
    "zip in a storage": lambda evil: pickle.dumps(
        Call(torch.storage._load_from_bytes, torch_zip(pickle.dumps(evil, 2))), 4
    ),
    "legacy in a storage": lambda evil: pickle.dumps(
        Call(torch.storage._load_from_bytes, torch_legacy(pickle.dumps(evil, 2))), 4
    ),
}


@pytest.mark.parametrize("ending", ["pkl", "pt", "safetensors"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("payload", ["os.system", "importlib", "eval", "Path.touch"])
def test_malicious_checkpoints_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: str, wrapping: str, ending: str
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "make_canary.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    evil, named = payloads(canary)[payload]
    file = tmp_path / f"weights.{ending}"
    file.write_bytes(WRAPPINGS[wrapping](evil))
    with pytest.raises(CheckpointError) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert any(f"{name}, which weight files do not need" in str(caught.value) for name in named)
    with pytest.raises(layouts.LayoutError):
        layouts.load(file)
    assert not canary.exists()
    assert "make_canary" not in sys.modules


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\x80\x04\x8c\x0bcollections\x8c\x10OrderedDict.copy\x93.", "OrderedDict.copy"),
        (b"\x80\x04\x8c\x0ctorch._utils\x8c\x09os.system\x93.", "os.system"),
        (b"cdnnlib.tflib.network\nNetwork\n.", "TensorFlow checkpoint .*PyTorch one"),
        (b"c_codecs\nencode\n(Vx\nVzlib\ntR.", "_codecs.encode"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "persistent"),
        (b"", "damaged"),
        (b"<!DOCTYPE html>", "damaged"),
        (torch_zip(b"")[:60], "damaged"),
        (torch_zip(b"garbage"), "damaged or not a checkpoint: it holds more than weights"),
        (b"PK\x03\x04" + b"\0" * 100, "damaged"),
    ],
    # Contents hold the time, which differs between the processes that run the tests.
    ids=range(10),
)
def test_other_files_are_refused_with_the_reason(
    tmp_path: Path, content: bytes, named: str
) -> None:
    file = tmp_path / "weights.pkl"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=named):
        read(file)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=np.float64).reshape(2, 3).T,
        np.arange(3, dtype=">f4"),
        np.array([True, False]),
        np.array(2.5),
    ],
)
def test_arrays_of_numbers_are_read(tmp_path: Path, protocol: int, value: np.ndarray) -> None:
    file = tmp_path / "arrays"
    file.write_bytes(pickle.dumps([value, (value,)], protocol))
    first, (second,) = read(file)
    assert np.array_equal(array(first), value)
    assert np.array_equal(array(second), value)
    assert array(first).dtype == value.dtype


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "arrays"
    for value in (np.array([{}, 1], object), np.array(["a"]), np.zeros(2, [("a", "f4")])):
        file.write_bytes(pickle.dumps(value, 4))
        with pytest.raises(CheckpointError, match="not an array of numbers"):
            array(read(file))
    with pytest.raises(CheckpointError, match="not an array of numbers"):
        array({})


def test_zip_in_a_zip_is_refused(tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "weights.pt"
    inner = torch_zip(pickle.dumps(payloads(canary)["os.system"][0], 2))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights.pt", inner)
    with pytest.raises(CheckpointError):
        read(file)
    file.write_bytes(torch_zip(inner))
    with pytest.raises(CheckpointError):
        read(file)
    assert not canary.exists()


def test_a_checkpoint_of_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / "e4e.pt"
    torch.save({"state_dict": {}, "opts": {}}, file)
    with pytest.raises(layouts.LayoutError, match=r"found opts, state_dict"):
        layouts.read_checkpoint(file)
    torch.save({"g_ema": {"input.input": "text"}}, file)
    with pytest.raises(layouts.LayoutError, match=r"e4e\.pt: input\.input is not a tensor"):
        layouts.read_checkpoint(file)


# --------------------------------------------------------------------------------- TorchScript


class Layers(torch.nn.Module):
    """A network with all that a TorchScript archive may hold: types, sharing, views, attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        self.second = torch.nn.ModuleList([self.first[0], torch.nn.Linear(3, 2).half()])
        self.register_buffer("column", torch.arange(12.0).reshape(3, 4)[:, 1])
        self.register_buffer("nothing", torch.zeros(0))
        self.size, self.pair, self.title, self.rates = [512, 512], (1, 2.5), "name", [0.5]

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.size[0]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    torch.jit.save(torch.jit.script(Layers()), tmp_path / "layers.pt")
    return tmp_path / "layers.pt"


Change = Callable[[str, bytes], bytes | None]


def rewritten(file: Path, change: Change, packed: bool = False) -> Path:
    """Replace the members of an archive; those for which `change` returns None are left out."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            if (new := change(name, data)) is not None:
                archive.writestr(name, new)
    return file


def test_tensors_of_a_script_are_those_of_its_state_dict(script: Path) -> None:
    wanted, found = torch.jit.load(script).state_dict(), read_script(script)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert torch.equal(found[name], value), name


def test_code_in_a_script_is_neither_run_nor_needed(
    script: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = read_script(script)
    found = read_script(rewritten(script, lambda name, data: None if "/code/" in name else data))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())

    class Greets(torch.nn.Module):
        @torch.jit.export
        def __getstate__(self):  # type: ignore[no-untyped-def]
            return self.training

        @torch.jit.export
        def __setstate__(self, state: bool):  # type: ignore[no-untyped-def]
            print("code of a script was run")
            self.training = state

        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.save(torch.jit.script(torch.nn.Sequential(Greets())), script)
    assert read_script(script) == {}
    assert capfd.readouterr().out == ""
    torch.jit.load(script)
    assert "code of a script was run" in capfd.readouterr().out


@pytest.mark.parametrize("payload", ["os.system", "importlib", "eval", "Path.touch"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_scripts_do_nothing(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, payload: str, protocol: int
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "make_canary.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    evil, named = payloads(canary)[payload]
    pickled = pickle.dumps(evil, protocol)
    rewritten(script, lambda name, data: pickled if name.endswith("/data.pkl") else data)
    with pytest.raises(CheckpointError, match=r"layers\.pt is refused") as caught:
        read_script(script)
    assert any(f"{name}, which weight files do not need" in str(caught.value) for name in named)
    assert not canary.exists()


def shorter(name: str, data: bytes) -> bytes:
    return data[:-1] if name.endswith("/data/0") else data


def replaced(old: bytes, new: bytes) -> Change:
    """Change the pickle of the modules."""

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("/data.pkl"):
            return data
        assert old in data
        return data.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("change", "packed", "named"),
    [
        (shorter, False, r"data/\d does not hold \d+ numbers of torch.float32"),
        (lambda name, data: data, True, r"data\.pkl is compressed"),
        (lambda n, data: None if n.endswith("/data/0") else data, False, "no item named"),
        (replaced(b"FloatStorage", b"VoidsStorage"), False, "it names torch.VoidsStorage"),
        (replaced(b"storage", b"strange"), False, "is not a storage"),
        # The column of a matrix, [3] with stride 4, beyond the end of its numbers.
        (replaced(b"K\x01(K\x03t(K\x04t", b"K\x09(K\x03t(K\x04t"), False, "out of bounds"),
        (lambda n, data: None if n.endswith("/data.pkl") else data, False, "no item named"),
        (lambda n, data: None if "constants" in n else data, False, "it is not a TorchScript arch"),
    ],
)
def test_damaged_scripts_are_refused_with_the_reason(
    script: Path, change: Change, packed: bool, named: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"layers\.pt is (damaged|refused).*{named}"):
        read_script(rewritten(script, change, packed))


def test_other_files_are_no_scripts(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="it is not a TorchScript archive"):
        read_script(file)
    for content in (b"", b"<html>", b"PK\x03\x04" + b"\0" * 100):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"weights\.pt is damaged or not a checkpoint"):
            read_script(file)


# --------------------------------------------------------------------------------- the command


def test_command_converts_and_refuses(tmp_path: Path) -> None:
    file = rosinality_file(tmp_path / "ffhq.pt", random_net())
    run = CliRunner().invoke(main, ["models", "convert", str(file), "--json"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout)
    assert (told["path"], told["resolution"]) == (str(tmp_path / "ffhq.safetensors"), "32")
    assert_same(layouts.load(Path(told["path"])), random_net())

    again = CliRunner().invoke(main, ["models", "convert", str(file)])
    assert (again.exit_code, "exists" in again.output) == (2, True)
    other = CliRunner().invoke(
        main, ["models", "convert", str(file), "--out", str(tmp_path / "x.pt")]
    )
    assert (other.exit_code, ".safetensors" in other.output) == (2, True)
    file.write_bytes(pickle.dumps(Call(os.system, f"touch {tmp_path / 'canary'}")))
    evil = CliRunner().invoke(
        main, ["models", "convert", str(file), "--out", f"{tmp_path}/y.safetensors"]
    )
    assert (evil.exit_code, "system" in evil.output) == (2, True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"ffhq.pt", "ffhq.safetensors"}


# -------------------------------------------------------------------------------------- the gate


def test_no_file_is_unpickled_freely(root: Path) -> None:
    """Every `torch.load` says weights_only=True; only `inert_pickles` has an unpickler."""
    folders = ("stages", "pipeline", "fitting", "benchmarks", "configs", "tests")
    files = [root / "cli.py", *(f for d in folders for f in (root / d).rglob("*.py"))]
    seen = 0
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                where = f"{file.relative_to(root)}:{node.lineno}"
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                assert (owner, node.attr) not in {("pickle", "load"), ("pickle", "loads")}, where
                if owner == "pickle" and node.attr in ("Unpickler", "_Unpickler"):
                    assert file.name == "inert_pickles.py", where
            if isinstance(node, ast.Call):
                where = f"{file.relative_to(root)}:{node.lineno}"
                keywords = {k.arg: k.value for k in node.keywords}
                if ast.unparse(node.func) == "torch.load":
                    seen += 1
                    assert ast.unparse(keywords["weights_only"]) == "True", where
                if "allow_pickle" in keywords and ast.unparse(node.func) == "np.load":
                    assert ast.unparse(keywords["allow_pickle"]) == "False", where
    assert seen >= 4
