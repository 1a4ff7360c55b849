"""StyleCLIP's global directions against the published formula."""

import numpy as np
import pytest
import torch

from dhr_batch.stages.edit import styleclip
from dhr_batch.stages.edit.direction_files import DirectionError
from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.edit.styleclip import channel_weights
from dhr_batch.stages.edit.stylespace import PUBLISHED, style_widths
from dhr_batch.tests.stages.channels import load, published_std


def unit(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


@pytest.fixture
def clip_files(tmp_path):
    """Files as published, with drawn numbers, and the numbers."""
    rng = np.random.default_rng(0)
    texts = {n: unit(rng.normal(size=512)).astype(np.float32) for n in ("target", "neutral")}
    np.savez(tmp_path / "beard.npz", **texts, texts=np.array(["beard", "face"]))
    fs3 = unit(rng.normal(size=(5376, 512))).astype(np.float32)
    np.save(tmp_path / "fs3.npy", fs3)
    path, std = published_std(tmp_path)
    models = {"styleclip-fs3": tmp_path / "fs3.npy", "styleclip-std": path}
    return str(tmp_path / "beard.npz"), models.__getitem__, texts, fs3, std


def reference(texts, fs3, std, beta, strength):
    """The published edit in float64, channel by channel, as (layer, channel) -> offset."""
    t, n = (texts[name].astype(np.float64) for name in ("target", "neutral"))
    direction = unit(unit(t) - unit(n))
    places = [
        (layer, channel)
        for layer in range(26)
        if layer % 3 != 1 and layer <= 16
        for channel in range(PUBLISHED[layer])
    ]
    relevance = [float(row.astype(np.float64) @ direction) for row in fs3]
    kept = [r if abs(r) >= beta else 0.0 for r in relevance]
    largest = max(map(abs, kept))
    return {
        (layer, channel): strength * r / largest * float(std[layer][channel])
        for (layer, channel), r in zip(places, kept, strict=True)
        if r
    }


@pytest.mark.parametrize("beta", [0.0, 0.09, 0.13])
def test_global_directions_are_those_of_the_formula(large, clip_files, beta):
    file, models, texts, fs3, std = clip_files
    edit = load(models, styleclip=file, beta=beta)
    edit.fit(large)
    ws = torch.zeros(1, 18, 512)
    codes, offsets = edit.apply(ws, 3.0)
    assert codes is ws
    assert edit.name == "beard"
    expected = reference(texts, fs3, std, beta, 3.0)
    assert 0 < len(expected) <= 5376
    names = list(style_widths(large))
    found = {
        (names.index(name.removesuffix(".style")), channel): float(offset[0, channel])
        for name, offset in offsets.items()
        for channel in offset[0].nonzero().flatten().tolist()
    }
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, rel=1e-5)
    # The most relevant channel moves by the strength, in its deviations.
    assert max(abs(v) / std[k[0]][k[1]] for k, v in found.items()) == pytest.approx(3, rel=1e-5)


def test_files_can_be_given_instead_of_models(large, clip_files, tmp_path):
    file, models, *_ = clip_files
    given = {"fs3": str(tmp_path / "fs3.npy"), "std": str(tmp_path / "S_mean_std")}
    chosen = {"styleclip": file, "beta": 0.1}
    assert load(**chosen, **given).sha256 == load(models, **chosen).sha256
    options = Directions.Options.model_validate({"edits": [chosen]})
    assert Directions(options).models(False) == {"styleclip-fs3", "styleclip-std"}
    options = Directions.Options.model_validate({"edits": [chosen | given]})
    assert Directions(options).models(False) == set()


def test_text_edits_have_checksums_of_their_numbers(clip_files):
    file, models, *_ = clip_files
    first, again, other = (load(models, styleclip=file, beta=b) for b in (0.1, 0.1, 0.11))
    assert first.sha256 == again.sha256 != other.sha256


def test_other_generators_are_refused(small, mobile, clip_files):
    file, models, *_ = clip_files
    edit = load(models, styleclip=file, beta=0.1)
    for generator in (small, mobile):
        with pytest.raises(DirectionError, match=r"fs3.*1024 px.*stylegan2-ffhq-1024"):
            edit.fit(generator)


def test_texts_without_relevant_channels_are_refused(clip_files, tmp_path):
    file, models, texts, *_ = clip_files
    with pytest.raises(DirectionError, match=r"beard.*reaches 0\.\d+, less than beta 0\.9"):
        load(models, styleclip=file, beta=0.9)
    np.savez(tmp_path / "same.npz", target=texts["target"], neutral=texts["target"])
    with pytest.raises(DirectionError, match="same features"):
        load(models, styleclip=str(tmp_path / "same.npz"))


def test_other_files_of_styleclip_are_named(clip_files, tmp_path):
    _, models, texts, *_ = clip_files
    np.savez(tmp_path / "one.npz", target=texts["target"])
    np.savez(tmp_path / "short.npz", target=np.ones(3), neutral=np.ones(3))
    (tmp_path / "text.npz").write_bytes(b"text")
    for name in ("one.npz", "short.npz", "text.npz", "absent.npz"):
        with pytest.raises(DirectionError, match=rf"{name}.*edits text-features"):
            load(models, styleclip=str(tmp_path / name))
    np.save(tmp_path / "other.npy", np.ones((9088, 512), np.float32))
    with pytest.raises(DirectionError, match=r"other\.npy must hold.*\[5376, 512\].*\[9088, 512\]"):
        styleclip.read_relevance(tmp_path / "other.npy")
    with pytest.raises(DirectionError, match=r"absent\.npy"):
        styleclip.read_relevance(tmp_path / "absent.npy")


def test_weights_below_the_threshold_are_zero():
    target, neutral = np.eye(512)[0], np.eye(512)[1]
    relevance = np.zeros((3, 512))
    relevance[:, 0] = (0.8, -0.4, 0.1)
    weights = channel_weights(target, neutral, relevance, 0.2)
    assert np.allclose(weights, [1, -0.5, 0])
