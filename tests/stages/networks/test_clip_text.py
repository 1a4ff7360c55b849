"""Tokens and features of CLIP's text tower against the published code with filled weights."""

import gzip

import numpy as np
import pytest
import torch

from dhr_batch.stages.networks import clip_text
from dhr_batch.stages.networks.clip_text import CLIPText, Tokenizer


@pytest.fixture(scope="module")
def published(golden_case):
    return golden_case("clip_text")


@pytest.fixture(scope="module")
def tokenizer(models):
    return Tokenizer(models("clip-vocabulary"))


@pytest.fixture(scope="module")
def net(published):
    with torch.device("meta"):
        made = CLIPText()
    made.load_state_dict(published.state(), assign=True)
    return made.eval().requires_grad_(False)


def test_tokens_equal_the_published_ones(published, tokenizer):
    tokens = tokenizer(published.facts["inputs"]["texts"])
    assert np.array_equal(tokens.numpy(), published.arrays["tokens"])


def test_features_equal_the_published_ones(published, net):
    tokens = torch.from_numpy(published.arrays["tokens"]).long()
    features = net(tokens)
    published.check("features", features)
    published.check("features", torch.cat([net(row[None]) for row in tokens]))


def test_prompts_are_averaged_as_published(published, net, tokenizer):
    texts = [published.facts["inputs"][name] for name in ("target", "neutral")]
    averages = [clip_text.prompt_features(net, tokenizer, text) for text in texts]
    published.check("averages", torch.stack(averages))


def test_there_are_79_different_templates():
    assert len(set(clip_text.TEMPLATES)) == 79
    assert all(template.count("{}") == 1 for template in clip_text.TEMPLATES)


def test_long_texts_are_refused(tokenizer):
    assert tokenizer(["face " * 75]).shape == (1, 77)
    with pytest.raises(ValueError, match="76 tokens; CLIP reads 75"):
        tokenizer(["face " * 76])


def test_another_vocabulary_is_named(tmp_path):
    (tmp_path / "text.gz").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"text\.gz is not the vocabulary"):
        Tokenizer(tmp_path / "text.gz")
    with gzip.open(tmp_path / "short.gz", "wt") as stream:
        stream.write("a b\n" * 10)
    with pytest.raises(ValueError, match="48894 merges"):
        Tokenizer(tmp_path / "short.gz")


def test_state_dicts_are_loaded_and_other_files_named(published, net, tmp_path):
    state = published.state()
    extra = {"visual.conv1.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    file = tmp_path / "clip.pt"
    torch.save({f"module.{k}": v.half() for k, v in state.items()} | extra, file)
    loaded = clip_text.load(file)
    for key, value in net.state_dict().items():
        got = loaded.state_dict()[key]
        assert got.dtype == torch.float32
        assert torch.equal(got, value.half().float()), key
    del state["text_projection"]
    torch.save(state, file)
    with pytest.raises(ValueError, match="text_projection is missing"):
        clip_text.load(file)
    torch.save([1], file)
    with pytest.raises(ValueError, match="holds a list"):
        clip_text.load(file)
