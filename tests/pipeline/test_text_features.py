"""The command `edits text-features`, with a narrow text tower in place of CLIP's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from dhr_batch.cli import main
from dhr_batch.stages.edit.styleclip import read_features
from dhr_batch.stages.networks import clip_text


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Callable[[str], Path]) -> Path:
    models(clip_text.VOCABULARY)
    monkeypatch.setattr(clip_text, "WIDTH", 16)
    monkeypatch.setattr(clip_text, "LAYERS", 1)
    draw = torch.Generator().manual_seed(0)
    state = clip_text.CLIPText().state_dict()
    file = tmp_path / "ViT-B-32.pt"
    torch.save({k: 0.3 * torch.randn(v.shape, generator=draw) for k, v in state.items()}, file)
    return file


def features(*words: object) -> Result:
    return CliRunner().invoke(main, ["edits", "text-features", *map(str, words)])


def test_features_of_both_texts_are_written(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "beard.npz"
    done = features("--clip", weights, "--target", "face with beard", "--out", out)
    assert done.exit_code == 0, done.output
    assert f"{{styleclip: {out}}}" in done.output
    target, neutral = read_features(out)
    tokenizer = clip_text.Tokenizer(clip_text_vocabulary())
    net = clip_text.load(weights)
    for value, text in ((target, "face with beard"), (neutral, "face")):
        prompts = [net(tokenizer([t.format(text)]))[0].double() for t in clip_text.TEMPLATES]
        mean = torch.stack([p / p.norm() for p in prompts]).mean(0)
        assert np.allclose(value, (mean / mean.norm()).numpy(), atol=1e-5)
    with np.load(out, allow_pickle=False) as archive:
        assert archive["texts"].tolist() == ["face with beard", "face"]


def clip_text_vocabulary() -> Path:
    from dhr_batch.pipeline.models import catalogue

    return catalogue.path(clip_text.VOCABULARY)


def test_mistakes_are_named(weights: Path, tmp_path: Path) -> None:
    long = " ".join(["face"] * 80)
    other = tmp_path / "other.pt"
    torch.save({"conv.weight": torch.zeros(1)}, other)
    for words, said in (
        (["--clip", weights, "--target", "a", "--out", tmp_path / "x.npy"], "end it with .npz"),
        (["--clip", weights, "--target", long, "--out", tmp_path / "x.npz"], "CLIP reads 75"),
        (["--clip", other, "--target", "a", "--out", tmp_path / "x.npz"], "is missing"),
    ):
        done = features(*words)
        assert done.exit_code == 2, done.output
        assert said in done.output
    assert not list(tmp_path.glob("x.*"))
