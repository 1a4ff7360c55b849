"""Edit arithmetic against published code, and the files directions are read from."""

import json
import zlib

import numpy as np
import pytest
import torch

from dhr_batch.stages import yaml_files
from dhr_batch.stages.context import Context
from dhr_batch.stages.edit import direction_files
from dhr_batch.stages.edit.direction_files import DirectionError, read, resolve
from dhr_batch.stages.edit.formulas import (
    ganspace,
    ganspace_fit,
    interfacegan,
    orthogonalise,
    sefa,
    style_weights,
)


@pytest.fixture(scope="module")
def tiny():
    return Context("cpu", "tiny", models=lambda name: None).network("generator", "tiny")


@pytest.fixture(scope="module")
def published(golden):
    """(inputs as tensors, expected outputs with tolerances) of the fixture `edits`."""
    about = json.loads((golden / "edits.json").read_text())
    inputs = {}
    for name, spec in about["inputs"].items():
        seed = zlib.crc32(f"{about['salt']}:{spec['key']}".encode())
        value = np.random.Generator(np.random.PCG64(seed)).standard_normal(
            spec["shape"], dtype=np.float32
        )
        value = np.abs(value) if spec.get("mode") == "abs" else value
        value = value * np.float32(spec.get("scale", 1)) + np.float32(spec.get("offset", 0))
        if "then" in spec:
            norm = np.linalg.norm(value.astype(np.float64), axis=-1, keepdims=True)
            value = (value / norm).astype(np.float32)
        inputs[name] = torch.from_numpy(value)
    with np.load(golden / "edits.npz") as archive:
        arrays = {k: archive[k] for k in archive.files}
    return inputs, arrays, {k: v["tolerance_abs"] for k, v in about["outputs"].items()}


@pytest.mark.parametrize(
    ("output", "direction", "strength"),
    [
        ("interfacegan_w_1.5", "dir_w", 1.5),
        ("interfacegan_w_-3", "dir_w", -3),
        ("interfacegan_wplus_-3", "dir_wplus", -3),
    ],
)
def test_interfacegan_equals_published_code(published, output, direction, strength):
    inputs, arrays, tolerance = published
    ours = interfacegan(inputs["codes"][:1], inputs[direction], strength)
    assert np.abs(ours.numpy() - arrays[output]).max() <= tolerance[output]


def rows_from(start, end):
    return torch.tensor([[float(start <= row < end)] for row in range(18)])


@pytest.mark.parametrize(
    "preset", [(54, 7, 8, 20), (58, 7, 9, -20), (34, 10, 11, 20), (0, 0, 18, 2)]
)
def test_ganspace_equals_published_code(published, preset):
    inputs, arrays, tolerance = published
    component, start, end, strength = preset
    output = "ganspace_{}_{}_{}_{}_rows".format(*preset)
    codes = inputs["codes"]
    ours = ganspace(
        codes,
        inputs["pca_mean"],
        inputs["pca_comp"][component],
        float(inputs["pca_std"][component]),
        rows_from(start, end),
        strength,
    )
    rows = [start] if arrays[output].shape[1] == 1 else [start, end - 1]
    assert np.abs(ours[:, rows].numpy() - arrays[output]).max() <= tolerance[output]
    moved = (ours - codes).abs().amax((0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == list(range(start, end))


def test_ganspace_twice_is_once(published):
    inputs, _, _ = published
    arguments = (inputs["pca_mean"], inputs["pca_comp"][3], float(inputs["pca_std"][3]))
    arguments = (*arguments, rows_from(0, 18), 2.0)
    once = ganspace(inputs["codes"], *arguments)
    assert torch.allclose(ganspace(once, *arguments), once, atol=1e-4)


def test_interfacegan_refuses_other_shapes():
    with pytest.raises(ValueError, match="17, 512"):
        interfacegan(torch.zeros(1, 18, 512), torch.zeros(17, 512), 1.0)


def test_orthogonalise():
    rng = np.random.default_rng(0)
    direction, conditions = rng.normal(size=512), rng.normal(size=(3, 512))
    rest = orthogonalise(direction, conditions)
    assert np.abs(conditions @ rest).max() < 1e-9
    assert rest @ direction > 0
    with pytest.raises(ValueError, match="nothing of it is left"):
        orthogonalise(conditions.sum(0), conditions)


# ------------------------------------------------------------------------------- SeFa, PCA


def test_style_weights_name_every_modulation_once(tiny):
    named = [n for row in range(tiny.num_ws) for n in style_weights(tiny, row)]
    assert sorted(named) == sorted(n for n in tiny.weight_names() if "modulation.weight" in n)
    assert [r for r in range(tiny.num_ws) if style_weights(tiny, r)] == tiny.live_rows


def test_sefa_moves_the_rows_whose_weights_it_factorised(tiny):
    directions, values = sefa(tiny, [4, 5], count=3)
    assert directions.shape == (3, tiny.num_ws, 512)
    assert directions.any((0, 2)).nonzero()[0].tolist() == [4, 5]
    assert (np.diff(values) <= 0).all()
    a = np.concatenate([tiny.weight(n).numpy() for r in (4, 5) for n in style_weights(tiny, r)])
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    for direction, value in zip(directions[:, 4], values, strict=True):
        assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-5)
        assert np.sum((a @ direction) ** 2) == pytest.approx(value, rel=1e-4)


def test_sefa_refuses_rows_without_a_layer(tiny):
    with pytest.raises(ValueError, match=r"no layer uses the rows \[3\]"):
        sefa(tiny, [2, 3])


def test_ganspace_fit_is_the_pca_of_mapped_latents(tiny):
    fit = ganspace_fit(tiny, samples=5000, components=5, seed=3)
    z = torch.randn(4096, 512, generator=torch.Generator().manual_seed(11))
    w = tiny.map(z).numpy()
    assert np.allclose(fit.components @ fit.components.T, np.eye(5), atol=1e-5)
    assert np.abs(w.mean(0) - fit.mean).max() < 6 * w.std(0).max() / 4096**0.5
    spread = ((w - fit.mean) @ fit.components.T).std(0)
    assert np.allclose(spread, fit.std, rtol=0.15)
    source = torch.Generator().manual_seed(3)
    own = torch.cat([torch.randn(n, 512, generator=source) for n in (4096, 904)])
    variances = np.linalg.eigvalsh(np.cov(tiny.map(own).double().numpy().T))[::-1]
    assert np.allclose(fit.std, np.sqrt(variances[:5]), rtol=1e-3)


# ------------------------------------------------------------------------------- files


@pytest.fixture
def array():
    return np.random.default_rng(1).normal(size=512).astype(np.float32)


def test_every_format_gives_the_same_direction(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array[None])
    torch.save(torch.from_numpy(array)[None], tmp_path / "c.pt")
    np.savez(tmp_path / "d.npz", smile=array)
    np.savez(tmp_path / "e.npz", smile=array, other=array * 2)
    names = ["a.npy", "b.npy", "c.pt", "d.npz", "e.npz#smile"]
    directions = [read(str(tmp_path / n)) for n in names]
    assert {d.sha256 for d in directions} == {directions[0].sha256}
    assert all(d.array.shape == (512,) and d.array.dtype == np.float32 for d in directions)
    assert [d.name for d in directions] == ["a", "b", "c", "d", "smile"]


def test_rows_are_kept(tmp_path, array):
    np.save(tmp_path / "w.npy", np.tile(array, (1, 18, 1)))
    assert read(str(tmp_path / "w.npy")).array.shape == (18, 512)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(511, np.float32), r"shape \[511\]"),
        (np.ones((2, 18, 512), np.float32), "holds 2 directions"),
        (np.ones((1, 1, 1, 512), np.float32), r"shape \[1, 1, 1, 512\]"),
        (np.zeros(512, np.float32), "zero everywhere"),
        (np.full(512, np.nan, np.float32), "not finite"),
        (np.array(["a"] * 512), "not a direction"),
        (np.ones(512, complex), "not a direction"),
    ],
)
def test_other_arrays_are_refused_by_name(tmp_path, value, message):
    np.save(tmp_path / "bad.npy", value)
    with pytest.raises(DirectionError, match=message) as caught:
        read(str(tmp_path / "bad.npy"))
    assert "bad.npy" in str(caught.value)


def test_files_that_cannot_be_read_are_refused_by_name(tmp_path, array):
    for name in ("bad.npy", "bad.npz", "bad.pt"):
        (tmp_path / name).write_bytes(b"this is text")
        with pytest.raises(DirectionError, match=name):
            read(str(tmp_path / name))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DirectionError, match=r"pickled\.npy"):
        read(str(tmp_path / "pickled.npy"))
    torch.save({"direction": torch.from_numpy(array)}, tmp_path / "dict.pt")
    with pytest.raises(DirectionError, match="holds a dict"):
        read(str(tmp_path / "dict.pt"))
    np.savez(tmp_path / "two.npz", a=array, b=array)
    with pytest.raises(DirectionError, match="one of a, b"):
        read(str(tmp_path / "two.npz"))
    with pytest.raises(DirectionError, match="does not exist"):
        read(str(tmp_path / "absent.npy"))
    with pytest.raises(DirectionError, match="supported are"):
        read(str(tmp_path / "direction.txt"))


def test_a_torch_file_is_never_unpickled_freely(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harmed"), "w"))

    torch.save(Harm(), tmp_path / "harm.pt")
    with pytest.raises(DirectionError, match=r"harm\.pt"):
        read(str(tmp_path / "harm.pt"))
    assert not (tmp_path / "harmed").exists()


def test_an_unknown_name_lists_the_known_ones(tmp_path, monkeypatch, array):
    np.savez(tmp_path / "set.npz", smile=array)
    sha = direction_files.digest(array)
    (tmp_path / "set.yaml").write_text(f"directions: {{smile: {{sha256: '{sha}', unit: one}}}}")
    monkeypatch.setattr(direction_files, "sets_folder", lambda: tmp_path)
    assert resolve("smile").unit == "one"
    with pytest.raises(DirectionError, match="did you mean 'smile'") as caught:
        resolve("smil")
    assert "choose from: smile" in str(caught.value)
    np.savez(tmp_path / "set.npz", smile=array * 2)
    with pytest.raises(DirectionError, match="not the array"):
        resolve("smile")


def test_a_set_is_parsed_once_and_anew_when_it_changes(tmp_path, monkeypatch):
    file, parsed, real = tmp_path / "set.yaml", [], yaml_files.read
    monkeypatch.setattr(yaml_files, "read", lambda file: parsed.append(file) or real(file))
    file.write_text("directions: {smile: {strengths: [1]}}")
    first = direction_files.describe_set(file)
    first["directions"]["smile"]["strengths"].append(2)
    again = direction_files.describe_set(file)
    assert again == {"directions": {"smile": {"strengths": [1]}}}
    assert parsed == [file]
    file.write_text("directions: {yaw: {}, smile: {}}")
    assert list(direction_files.describe_set(file)["directions"]) == ["yaw", "smile"]


def test_shipped_directions_all_resolve():
    names = direction_files.shipped()
    assert {"smile", "mouth_open", "yaw", "eyes_open"} <= set(names)
    for name in names:
        assert resolve(name).unit


@pytest.mark.parametrize(
    "name", ["dir_e4e_smile.npy", "dir_e4e_pose_18x512.npy", "dir_nada_age.npy"]
)
def test_published_files_are_read(shared, name):
    direction = read(str(shared / "data" / name))
    assert np.linalg.norm(direction.array, axis=-1) == pytest.approx(1, abs=1e-3)
