"""Nothing inside a checkpoint is ever run, and what a checkpoint needs is read all the same."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from dhr_batch.cli import main
from dhr_batch.stages.networks.files.checkpoints import CheckpointError, array, read
from dhr_batch.stages.networks.generators import stylegan2_layouts as layouts
from dhr_batch.tests.stages.networks.files.checkpoint_files import (
    Call,
    Persistent,
    assert_same,
    nvidia_file,
    payloads,
    random_net,
    rosinality_file,
)


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
