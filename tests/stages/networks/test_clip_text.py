"""Tokens and features of CLIP's text tower against the published code with filled weights."""

import gzip

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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


@pytest.fixture
def narrow(monkeypatch):
    """The text tower with few weights, and their state dict."""
    for name, value in {"WIDTH": 16, "LAYERS": 2, "WORDS": 40, "FEATURES": 8}.items():
        monkeypatch.setattr(clip_text, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = CLIPText()
        for value in made.parameters():
            torch.nn.init.normal_(value)
    return made.requires_grad_(False)


def test_the_layouts_of_the_file_are_read(narrow, scripted, tmp_path):
    state = {key: value.half() for key, value in narrow.state_dict().items()}
    extra = {"visual.conv1.weight": torch.zeros(2), "logit_scale": torch.zeros(())}
    torch.save(state | extra, tmp_path / "plain.pt")
    torch.save({f"module.{k}": v for k, v in state.items()} | extra, tmp_path / "parallel.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "nested.pt")
    files = [tmp_path / name for name in ("plain.pt", "parallel.pt", "nested.pt")]
    for file in [*files, scripted(state | extra)]:
        loaded = clip_text.load(file).state_dict()
        assert loaded.keys() == state.keys()
        for key, value in loaded.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, state[key].float()), key


def test_the_names_of_transformers_are_read(narrow, tmp_path):
    state = narrow.state_dict()
    theirs = {"text_projection.weight": state["text_projection"].T.contiguous()}
    theirs["text_model.embeddings.token_embedding.weight"] = state["token_embedding.weight"]
    theirs["text_model.embeddings.position_embedding.weight"] = state["positional_embedding"]
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for kind in ("weight", "bias"):
        theirs[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        for i in range(2):
            ours, layer = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
            for name, other in names.items():
                theirs[f"{layer}.{other}.{kind}"] = state[f"{ours}.{name}.{kind}"]
            parts = state[f"{ours}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                theirs[f"{layer}.self_attn.{name}_proj.{kind}"] = part.clone()
    theirs["vision_model.embeddings.class_embedding"] = torch.zeros(3)
    save_file(theirs, tmp_path / "model.safetensors")
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    for name in ("model.safetensors", "pytorch_model.bin"):
        loaded = clip_text.load(tmp_path / name).state_dict()
        assert loaded.keys() == state.keys()
        for key, value in loaded.items():
            assert torch.equal(value, state[key]), key
    del theirs["text_model.encoder.layers.1.self_attn.v_proj.weight"]
    save_file(theirs, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors.*1\.attn\.in_proj_weight has shape"):
        clip_text.load(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        clip_text.load(tmp_path / "model.safetensors")


def test_other_files_are_named(narrow, tmp_path):
    state = narrow.state_dict()
    del state["text_projection"]
    file = tmp_path / "clip.pt"
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"clip\.pt.*text_projection is missing"):
        clip_text.load(file)
    torch.save([1], file)
    with pytest.raises(ValueError, match=r"clip\.pt holds a list"):
        clip_text.load(file)
    file.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"clip\.pt"):
        clip_text.load(file)
