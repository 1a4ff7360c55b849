"""The text side of CLIP ViT-B/32: byte-pair tokens, the text tower and features of prompts.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv
2103.00020). The weights are a file of the user, ``ViT-B-32.pt`` of OpenAI or a state dict with the
same names. Global directions of StyleCLIP are made from the features of two texts.
"""

from __future__ import annotations

import gzip
import html
import itertools
import re
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dhr_batch.stages.networks.files import checkpoints, weight_files

WIDTH, HEADS, LAYERS = 512, 8, 12
CONTEXT, WORDS = 77, 49408
FEATURES = 512
START, END = WORDS - 2, WORDS - 1
# Besides merges, the vocabulary has 256 bytes, the same at the end of a word, and two marks.
MERGES = WORDS - 2 - 2 * 256
WORD_END = "</w>"
CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)")
VOCABULARY = "clip-vocabulary"
# Names of transformers and the published ones.
RENAMED = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "final_layer_norm.": "ln_final.",
}
# `TEMPLATES` are the prompts of CLIP for ImageNet without "a photo of many {}.", as in StyleCLIP.
MEDIA = (
    *("a photo of", "a bad photo of", "a good photo of", "a blurry photo of", "a bright photo of"),
    *("a dark photo of", "a black and white photo of", "a close-up photo of", "a cropped photo of"),
    *("a low resolution photo of", "a pixelated photo of", "a jpeg corrupted photo of", "itap of"),
    *("a painting of", "a drawing of", "a sketch of", "a doodle of", "a tattoo of", "graffiti of"),
    *("art of", "a sculpture of", "a rendering of", "a rendition of"),
)
SUBJECTS = ("hard to see", "clean", "dirty", "cool", "large", "nice", "weird", "small")
MATERIALS = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")
TEMPLATES = (
    *("a photo of my {}.", "a photo of one {}.", "itap of my {}."),
    *(f"{medium} {article} {{}}." for medium in MEDIA for article in ("a", "the")),
    *(f"a photo of {article} {kind} {{}}." for kind in SUBJECTS for article in ("a", "the")),
    *(f"{article} {material} {{}}." for material in MATERIALS for article in ("a", "the")),
    *("a {} in a video game.", "the {} in a video game."),
)


# ------------------------------------------------------------------------------- tokens


class Tokenizer:
    """Splits texts into tokens of CLIP.

    Unlike the published tokenizer it does not repair texts that were decoded wrongly.

    Args:
        file: The merges, `bpe_simple_vocab_16e6.txt.gz`.

    Raises:
        ValueError: The file is another one.
    """

    def __init__(self, file: Path) -> None:
        try:
            with gzip.open(file, "rt", encoding="utf-8") as stream:
                lines = stream.read().split("\n")[1 : MERGES + 1]
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not the vocabulary of CLIP: {error}") from error
        merges = [tuple(line.split()) for line in lines]
        if len(merges) != MERGES or any(len(pair) != 2 for pair in merges):
            raise ValueError(f"{file} is not the vocabulary of CLIP: it needs {MERGES} merges")
        self.rank = {pair: i for i, pair in enumerate(merges)}
        units = list(_byte_letters().values())
        words = [*units, *(u + WORD_END for u in units), *("".join(pair) for pair in merges)]
        self.ids = {word: i for i, word in enumerate(words)}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts between marks of start and end, zero-padded, [N, 77].

        Raises:
            ValueError: A text has too many tokens.
        """
        tokens = torch.zeros(len(texts), CONTEXT, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            found = [START, *self.encode(text), END]
            if len(found) > CONTEXT:
                raise ValueError(
                    f"the text {text!r} has {len(found) - 2} tokens; CLIP reads {CONTEXT - 2}"
                )
            row[: len(found)] = torch.tensor(found)
        return tokens

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text without marks."""
        text = unicodedata.normalize("NFC", html.unescape(html.unescape(text)))
        return [self.ids[unit] for word in _words(text.lower()) for unit in self._merged(word)]

    def _merged(self, word: str) -> list[str]:
        """Join the bytes of a word pairwise, the pair of the lowest rank first."""
        units = [_byte_letters()[byte] for byte in word.encode("utf-8")]
        units[-1] += WORD_END
        while True:
            pairs = set(itertools.pairwise(units)) & self.rank.keys()
            if not pairs:
                return units
            best = min(pairs, key=self.rank.__getitem__)
            joined, i = [], 0
            while i < len(units):
                width = 2 if tuple(units[i : i + 2]) == best else 1
                joined.append("".join(units[i : i + width]))
                i += width
            units = joined


@cache
def _byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte, in the order of the vocabulary."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _kind(character: str) -> str:
    """Return `L` for letters, `N` for numbers, a space for spaces, and `X` for all others."""
    category = unicodedata.category(character)[0]
    return " " if character.isspace() else category if category in "LN" else "X"


def _words(text: str) -> Iterator[str]:
    """Yield the words of a text: contractions, runs of letters, single numbers, runs of others."""
    i = 0
    while i < len(text):
        kind, end = _kind(text[i]), i + 1
        if match := CONTRACTION.match(text, i):
            end = match.end()
        elif kind in "LX":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != " ":
            yield text[i:end]
        i = end


# ------------------------------------------------------------------------------- network


class _Attention(nn.Module):
    """Attention of each token to itself and those before it, [B, T, 512] -> [B, T, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        joined = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        heads = joined.reshape(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(seen.transpose(1, 2).reshape(b, t, WIDTH))


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = _Attention()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(WIDTH, 4 * WIDTH))
        self.mlp.add_module("gelu", _QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(_Block() for _ in range(LAYERS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class CLIPText(nn.Module):
    """Maps tokens [N, 77] to features [N, 512], which are not normalised.

    Modules have the published names of their weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(WORDS, WIDTH)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT, WIDTH))
        self.transformer = _Transformer()
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.empty(WIDTH, FEATURES))

    def forward(self, tokens: Tensor) -> Tensor:
        # The mark of the end is the largest token, and nothing before it depends on what follows.
        ends = tokens.argmax(1)
        length = int(ends.max()) + 1
        x = self.token_embedding(tokens[:, :length]) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x))
        return x[torch.arange(len(x), device=x.device), ends] @ self.text_projection


def load(file: Path) -> CLIPText:
    """Return the text tower of a file of CLIP. The image tower is left out.

    Args:
        file: ``ViT-B-32.pt`` as OpenAI publishes it, whose code is not run, or a state dict of the
            same names or of those of transformers, also as ``.safetensors``.

    Raises:
        CheckpointError: The file is damaged or refused.
        ValueError: It is not the text tower of ViT-B/32.
    """
    content = _content(file)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__}, not the weights of CLIP")
    weights = {key.removeprefix("module."): value for key, value in content.items()}
    if "text_projection.weight" in weights:
        weights = _renamed(weights)
    with torch.device("meta"):
        net = CLIPText()
    wanted = net.state_dict()
    return weight_files.fill(net, {k: v for k, v in weights.items() if k in wanted}, file)


def _content(file: Path) -> Any:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read as weights: {error}") from error
    script = zipfile.is_zipfile(file) and "constants.pkl" in _members(file)
    return checkpoints.read_script(file) if script else checkpoints.read(file)


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a text tower of transformers by their published names."""
    found = {"text_projection": weights["text_projection.weight"].T}
    for key, value in weights.items():
        name = key.removeprefix("text_model.").replace("encoder.layers.", "transformer.resblocks.")
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        found.setdefault(name, value)
        if ".self_attn.q_proj." in key:
            parts = [weights.get(key.replace("q_proj", part)) for part in ("k_proj", "v_proj")]
            joined = [value, *(part for part in parts if part is not None)]
            found[name.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(joined)
    return found


def _members(file: Path) -> set[str]:
    with zipfile.ZipFile(file) as archive:
        return {name.rpartition("/")[2] for name in archive.namelist()}


@torch.inference_mode()
def prompt_features(net: CLIPText, tokenizer: Tokenizer, text: str) -> Tensor:
    """Return the unit mean of the unit features of a text in all prompts of `TEMPLATES`, [512]."""
    device = net.text_projection.device
    tokens = tokenizer([template.format(text) for template in TEMPLATES]).to(device)
    return F.normalize(F.normalize(net(tokens)).mean(0), dim=0)
