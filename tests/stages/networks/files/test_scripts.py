"""The tensors of TorchScript archives are read, and nothing inside one is ever run."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dhr_batch.stages.networks.files.checkpoints import CheckpointError, read_script
from dhr_batch.tests.stages.networks.files.checkpoint_files import payloads


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
