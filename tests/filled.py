"""Checkpoints of published layouts with drawn numbers in place of trained weights.

The commands of the project read them like published files, so a whole run or benchmark can be made
without any of these. Where the layout allows it, the networks are narrower than the published ones.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "configs" / "models"
# Its label contains "tiny", which marks every figure as one of random weights.
GENERATOR = "tiny-filled"
_WIDTH = 32
# Rows of the codes of a generator of 64 px.
ROWS = 10

Rules = Sequence[tuple[str, float | str, float, str]]


def draw(key: str, shape: Sequence[int], rules: Rules = ((".", 1, 0, "n"),)) -> np.ndarray:
    """Return the numbers that a golden fixture puts into a tensor, float32.

    Args:
        key: The name of the tensor.
        shape: Its shape.
        rules: The `fill_rules` of the fixture; without them, a standard normal draw.

    Raises:
        LookupError: If no rule matches, or the rule keeps the value of the constructor.
    """
    _, scale, offset, mode = next(rule for rule in rules if re.search(rule[0], key))
    if mode == "keep":
        raise LookupError(f"{key} is not filled")
    if mode == "zero":
        return np.zeros(shape, np.float32)
    if isinstance(scale, str):
        names = {"fan_in": math.prod(shape[1:]), "sqrt": math.sqrt}
        scale = eval(scale, {"__builtins__": {}}, names)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"dhr:{key}".encode())))
    n = np.asarray(generator.standard_normal(tuple(shape), dtype=np.float32))
    n = np.abs(n) if mode == "abs" else n
    return (n * np.float32(scale) + np.float32(offset)).astype(np.float32)


def environment(folder: Path, gpus: int = 0) -> dict[str, str]:
    """Return the variables with which commands use the checkpoints of a folder.

    Args:
        folder: The folder that `write` has filled.
        gpus: The number of GPUs that the machine seems to have; their workers compute on the CPU.
    """
    path = [str(HERE / "stand_ins"), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "DHR_BATCH_FILLED": str(folder),
        "DHR_BATCH_LOGICAL_GPUS": str(gpus),
    }


def write(folder: Path, names: Iterable[str] | None = None) -> Path:
    """Write filled files of published models.

    Args:
        folder: The folder for the files and the descriptions of all models.
        names: The models; None for all that are known here.

    Returns:
        The checkpoint of a generator of 64 px in rosinality's layout.
    """

    folder.mkdir(parents=True)
    for described in CONFIGS.iterdir():
        (folder / described.name).symlink_to(described)
    for name in MODELS if names is None else names:
        _save(MODELS[name](), folder / f"{name}.pt")
        described = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text("utf-8"))
        described["source"] = {"kind": "file", "path": str(folder / f"{name}.pt")}
        (folder / f"{name}.yaml").unlink()
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(described), "utf-8")
    return _generator(folder / f"{GENERATOR}.pt")


def _generator(file: Path) -> Path:
    """Write StyleGAN2 at 64 px in rosinality's layout with few channels, and return the file."""
    import torch

    fixture = HERE / "golden" / "stylegan2_rosinality_64.json"
    facts = json.loads(fixture.read_text("utf-8"))
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    state = {}
    for key, shape in facts["state_dict"]:
        # All but the mapping network, the noise maps and the sizes of codes.
        codes = {1} if key.endswith("modulation.weight") else set()
        narrow = [
            size if key.startswith(("style.", "noises.")) or i in codes else min(size, _WIDTH)
            for i, size in enumerate(shape)
        ]
        try:
            state[key] = torch.from_numpy(draw(key, narrow, facts["fill_rules"]))
        except LookupError:
            state[key] = taps[:, None] * taps / 64
    torch.save({"g_ema": state, "latent_avg": torch.zeros(512)}, file)
    return file


def script(state: Mapping[str, Any]) -> Any:
    """Return a TorchScript module with these tensors."""
    import torch

    top = torch.nn.Module()
    for key, value in state.items():
        *parents, last = key.split(".")
        module = top
        for name in parents:
            if name not in dict(module.named_children()):
                module.add_module(name, torch.nn.Module())
            module = module.get_submodule(name)
        module.register_buffer(last, value)
    return torch.jit.script(top)


def _save(content: Any, file: Path) -> None:
    import torch

    save = torch.jit.save if isinstance(content, torch.jit.ScriptModule) else torch.save
    save(content, file)


def _fixture(name: str, prefix: str = "", published: str = "") -> dict[str, Any]:
    """Return the tensors of a golden fixture whose names begin with a prefix.

    Args:
        name: The fixture.
        prefix: The prefix.
        published: The prefix of these tensors in the published file.
    """
    import torch

    facts = json.loads((HERE / "golden" / f"{name}.json").read_text("utf-8"))
    return {
        published + key.removeprefix(prefix): torch.tensor(draw(key, shape, facts["fill_rules"]))
        for key, shape in facts["state_dict"]
        if key.startswith(prefix)
    }


def _seeded(make: Callable[[], Any]) -> Mapping[str, Any]:
    """Return the state dict of a network with the random weights of its constructor."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().state_dict()


def _encoder(**layout: Any) -> dict[str, Any]:
    import torch

    from dhr_batch.stages.networks.encoders.psp import Encoder

    state = _seeded(lambda: Encoder(width=8, heads=ROWS, **layout))
    named = {f"encoder.{key}": value for key, value in state.items()}
    return {"state_dict": named, "latent_avg": torch.zeros(ROWS, 512)}


def _farl() -> Any:
    """Return FaRL with 96 channels in place of 768, which finds skin everywhere.

    Its normalisation is not filled.
    """
    import torch

    from dhr_batch.stages.networks.parsers.face_parts import INDEX

    facts = json.loads((HERE / "golden" / "farl_448_narrow.json").read_text("utf-8"))
    state = {}
    for key, shape in facts["state_dict"]:
        try:
            state[key] = torch.tensor(draw(key, shape, facts["fill_rules"]))
        except LookupError:
            state[key] = torch.full(shape, 0.5)
    state["head.head.conv_seg.bias"][INDEX["face"]] += 1000
    return script(state)


def _invertibility() -> dict[str, dict[str, Any]]:
    """Return the predictor of SAM, a state dict for each part."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in _fixture("sam_invertibility").items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return parts


def _narrow(name: str, *sizes: Any) -> dict[str, Any]:
    """Return a checkpoint of the stage tests."""
    from dhr_batch.tests.stages import narrow

    return getattr(narrow, name)(*sizes)


def _inception() -> Mapping[str, Any]:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Layout(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any) -> None:
            """Keep the weights of the constructor."""

    with tempfile.NamedTemporaryFile() as file:
        torch.save({}, file.name)
        return _seeded(lambda: Layout("layout", ["2048"], feature_extractor_weights_path=file.name))


# The checkpoint of each model by its name.
MODELS: dict[str, Callable[[], Any]] = {
    "e4e-ffhq": lambda: _encoder(shared=True),
    "lsap-ffhq": lambda: _encoder(shared=True),
    "psp-ffhq": lambda: _encoder(shared=False),
    "restyle-e4e-ffhq": lambda: _encoder(shared=True, pyramid=False, inputs=6),
    "restyle-psp-ffhq": lambda: _encoder(shared=False, pyramid=False, inputs=6),
    "lpips-alex-backbone": lambda: _fixture("lpips_alex", "alex.net.layers.", "features."),
    "lpips-vgg-backbone": lambda: _fixture("lpips_vgg", "vgg.net.layers.", "features."),
    "style-transformer-ffhq": lambda: _narrow("style_transformer"),
    "hyperstyle-w-encoder": lambda: _narrow("w_encoder"),
    "hyperstyle-ffhq": lambda: _narrow("hyperstyle", [_WIDTH] * 5),
    "hfgi-ffhq": lambda: _narrow("hfgi", _WIDTH, ROWS),
    "sam-invertibility": _invertibility,
    "bisenet-19": lambda: _fixture("bisenet_19"),
    "farl-celebm-448": _farl,
    "curricularface-ir101": lambda: _fixture("id_curricularface_ir101"),
    "inception-2015-12-05": _inception,
}
